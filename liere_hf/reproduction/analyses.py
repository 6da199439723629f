"""Experiments without settings of their own: FLOPs, equivalence with RoPE, and attention maps of trained models."""

import json
import math
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import scipy.linalg
import torch
from rich.console import Console
from transformers import AutoImageProcessor, AutoModelForImageClassification, PreTrainedModel
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from ..configuration import compared_encodings, paper_flops_overhead
from ..configuration.arguments import PRESETS
from ..flops import count_flops as flops_of_inputs
from ..flops import count_rotation_flops
from ..hardware import hardware
from ..modeling.configuration_liere_vit import LiereViTConfig
from ..modeling.exponential import skew_matrix_exp
from ..modeling.modeling_liere_vit import LiereViTForImageClassification
from ..modeling.position_encodings import POSITION_ENCODINGS
from ..output_files import write_bytes, write_json
from ..plots.plot import as_lists
from . import equivariance
from .experiments import Scale
from .runner import ExperimentRunner, Setting
from .tables import table_lines


@dataclass(frozen=True)
class Analysis:
    """`run` writes `table.md` and `results.json` to its directory; `draw` adds `figure.png`, from `figure.json`."""

    title: str
    source: str
    run: Callable[[Path, Scale, ExperimentRunner, Console], None]
    draw: Callable[[Path], None] | None = None


FIGURE_FILE = "figure.json"
NUM_PICTURES = 16
FLOPS_BATCH = 128
FLOPS_TEXT = """\
Forward pass of an image of 224 pixels in patches of 16, relative to the absolute model. Applying alone: multiplying
queries and keys by their rotations, in closed form, two FLOPs per multiply-add, relative to inference. The paper's
results agree with this. Inference and training: counted by torch's FlopCounterMode, which counts matrix products only.
RoPE rotates pairs without matrix products, and blocks of 8 are multiplied in wider matrices. Rotations are cached for
inference. In training they are computed by matrix exponentials, once per batch, here of 128.
"""


def _flops(directory: Path, scale: Scale, runner: ExperimentRunner, console: Console) -> None:
    """FLOPs of a forward pass per image of 224 pixels, for all model sizes."""
    rows = []
    for size, preset in PRESETS.items():
        encodings = compared_encodings()
        counts = {title: count_flops(preset | compared.options) for title, compared in encodings.items()}
        for title, compared in encodings.items():
            row = {"size": size, "encoding": title, **counts[title]}
            for kind in ("inference", "training"):
                row[f"{kind}_overhead_percent"] = 100 * (counts[title][kind] / counts["absolute"][kind] - 1)
            row["applying_percent"] = 100 * applying_flops(preset | compared.options) / counts["absolute"]["inference"]
            row["paper_percent"] = paper_flops_overhead(compared.paper_name) if size == "base" else None
            rows.append(row)
    lines = ["# FLOPs (table 8)", ""]
    lines += textwrap.wrap(FLOPS_TEXT, 118)
    header = [
        "size",
        "encoding",
        "parameters",
        "GFLOPs",
        "applying alone, %",
        "inference, %",
        "training, %",
        "paper, %",
    ]
    body = []
    for row in rows:
        paper = "" if row["paper_percent"] is None else f"+{row['paper_percent']:g}"
        cells = [row["size"], row["encoding"], f"{row['num_parameters']:,}", f"{row['inference'] / 1e9:.2f}"]
        kinds = ("applying_percent", "inference_overhead_percent", "training_overhead_percent")
        body.append([*cells, *(f"{row[kind]:+.2f}" for kind in kinds), paper])
    lines += ["", *table_lines(header, body)]
    _write(directory, rows, lines, console)


def count_flops(fields: dict[str, Any]) -> dict[str, float]:
    """FLOPs of a forward pass per image of 224 pixels, by FlopCounterMode, and the number of parameters.

    Returns:
        `inference`, with rotations computed before; `training`, which computes them once per batch of `FLOPS_BATCH`;
        and `num_parameters`.
    """
    config = _config(fields)
    with torch.device("meta"):
        # FLOPs of eager attention are counted everywhere.
        model = LiereViTForImageClassification._from_config(config, attn_implementation="eager")
        inference = flops_of_inputs(model.eval(), torch.empty(1, 3, 224, 224))
    training = inference + count_rotation_flops(config, config.grid_size) / FLOPS_BATCH
    return {"inference": inference, "training": training, "num_parameters": model.num_parameters()}


def applying_flops(fields: dict[str, Any]) -> int:
    """Multiplications and additions of turning queries and keys of all patches, block by block, at 224 pixels."""
    config = _config(fields)
    if not POSITION_ENCODINGS[config.position_encoding].is_rotary:
        return 0
    entries = config.num_attention_heads * config.head_dim * config.generator_block_size
    return 2 * 2 * math.prod(config.grid_size) * entries * config.num_hidden_layers


def _config(fields: dict[str, Any]) -> LiereViTConfig:
    return LiereViTConfig(image_size=224, patch_size=16, num_labels=1000, **fields)


def _rope(directory: Path, scale: Scale, runner: ExperimentRunner, console: Console) -> None:
    """Appendix A: on one axis LieRE is RoPE in another basis, up to rounding."""
    rows = [{"block size": width, "largest_deviation": rope_deviation(width)} for width in (2, 8, 64)]
    lines = ["# LieRE in one dimension is RoPE (appendix A)", ""]
    lines += [
        "Scores of 64-wide queries and keys at positions 0 to 63, in float64: our rotations with random generators,",
        "against transformers' RoPE at the generators' angular frequencies after a change of basis.",
        "",
    ]
    cells = [[str(row["block size"]), f"{row['largest_deviation']:.1e}"] for row in rows]
    lines += table_lines(["block size", "largest deviation of a score"], cells)
    _write(directory, rows, lines, console)


def rope_deviation(width: int, num_positions: int = 64, seed: int = 0) -> float:
    """Largest difference between scores rotated by exp(p A) and by RoPE with A's frequencies, in A's Schur basis.

    The real Schur decomposition of a skew-symmetric A is Q S Q^T with 2 x 2 blocks in S: exp(p A) = Q exp(p S) Q^T.
    """
    generator = torch.Generator().manual_seed(seed)
    raw = torch.rand(64 // width, width, width, generator=generator, dtype=torch.float64).triu(1)
    skew = torch.block_diag(*(raw - raw.mT))
    query, key = torch.randn(2, num_positions, 64, generator=generator, dtype=torch.float64)
    positions = torch.arange(num_positions, dtype=torch.float64)
    rotations = skew_matrix_exp(positions[:, None, None] * skew)
    ours = (rotations @ query[..., None])[..., 0] @ (rotations @ key[..., None])[..., 0].mT

    schur, basis = (torch.from_numpy(part) for part in scipy.linalg.schur(skew.numpy()))
    frequencies = -torch.diagonal(schur, offset=1)[::2]
    # transformers' RoPE rotates the pairs (i, i + 32). In the Schur basis pairs are adjacent.
    order = torch.cat((torch.arange(0, 64, 2), torch.arange(1, 64, 2)))
    angles = (positions[:, None] * frequencies).repeat(1, 2)
    in_basis = [(states @ basis)[None, None, :, order] for states in (query, key)]
    query, key = apply_rotary_pos_emb(*in_basis, angles.cos()[None], angles.sin()[None])
    return (ours - query[0, 0] @ key[0, 0].mT).abs().max().item()


def _attention(directory: Path, scale: Scale, runner: ExperimentRunner, console: Console) -> None:
    """Figure 12: attention of CLS in each layer, by encoding, in the models of the experiment `accuracy`."""
    seed = scale.seeds_of(scale.images)[0]
    maps, entropies = {}, []
    for encoding, compared in compared_encodings().items():
        setting = Setting(scale.images, {"encoding": encoding}, compared.options)
        console.print(f"{encoding}: its model of the experiment accuracy, trained now if it is not there")
        model_dir = runner.wait_for(setting, seed)
        model = AutoModelForImageClassification.from_pretrained(model_dir, attn_implementation="eager").eval()
        pictures = runner.test_pictures(scale.images, NUM_PICTURES)
        processor = AutoImageProcessor.from_pretrained(model_dir)
        pixel_values = processor(pictures, return_tensors="pt")["pixel_values"]
        attention = layer_attention(model, pixel_values)
        maps[encoding] = attention[:, 0]
        entropies += [
            {"encoding": encoding, "layer": layer + 1, "entropy_bits": float(bits)}
            for layer, bits in enumerate(entropy(attention).mean(1))
        ]
    lines = ["# Attention of CLS by layer (figure 12)", ""]
    lines += [f"Entropy of CLS's attention to the patches, mean of heads and {NUM_PICTURES} test images, in bits.", ""]
    layers = sorted({row["layer"] for row in entropies})
    bits = {name: [f"{row['entropy_bits']:.2f}" for row in entropies if row["encoding"] == name] for name in maps}
    header = ["encoding", *(f"layer {layer}" for layer in layers)]
    lines += table_lines(header, [[encoding, *of_layers] for encoding, of_layers in bits.items()])
    shown = {encoding: as_lists(of_picture) for encoding, of_picture in maps.items()}
    write_json(directory / FIGURE_FILE, {"picture": pictures[0].permute(1, 2, 0).tolist(), "attention": shown})
    draw_attention(directory)
    _write(directory, entropies, lines, console)


@torch.no_grad()
def layer_attention(model: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """CLS's attention to the patches, averaged over heads: (layers, batch, *grid), normalized to sum 1."""
    attentions = torch.stack(model(pixel_values, output_attentions=True).attentions)
    patches = attentions[..., 0, model.config.num_prefix_tokens :].mean(dim=2)
    return (patches / patches.sum(-1, keepdim=True)).unflatten(-1, model.config.grid_size)


def entropy(attention: torch.Tensor) -> torch.Tensor:
    """Entropy of attention maps (layers, batch, *grid) in bits, (layers, batch)."""
    shares = attention.flatten(2)
    return -torch.special.xlogy(shares, shares).sum(-1) / math.log(2)


def draw_attention(directory: Path) -> None:
    """Draw `figure.png` from the picture and the maps in `figure.json`."""
    content = json.loads((directory / FIGURE_FILE).read_text())
    maps, picture = content["attention"], np.array(content["picture"], np.uint8)
    num_layers = max(len(layers) for layers in maps.values())
    size = (1.8 * (num_layers + 1), 1.45 * len(maps) + 0.5)
    figure, panels = plt.subplots(len(maps), num_layers + 1, figsize=size, layout="constrained", squeeze=False)
    extent = (0, picture.shape[1], picture.shape[0], 0)
    for row, (encoding, layers) in zip(panels, maps.items(), strict=True):
        row[0].imshow(picture, extent=extent)
        row[0].set_ylabel(encoding)
        for number, (axes, layer) in enumerate(zip(row[1:], layers, strict=True), start=1):
            image = axes.imshow(layer, cmap="viridis", extent=extent, vmin=0)
            axes.set_title(f"layer {number}" if encoding == next(iter(maps)) else "")
            figure.colorbar(image, ax=axes, shrink=0.7)
    for axes in panels.flat:
        axes.set(xticks=[], yticks=[])
    figure.suptitle("Share of CLS's attention by patch, mean of heads")
    figure.savefig(directory / "figure.png", dpi=110)
    plt.close(figure)


def _write(directory: Path, rows: list[dict[str, Any]], lines: list[str], console: Console) -> None:
    measured_on = hardware()
    lines += ["", f"Measured on {measured_on['device']}."]
    write_json(directory / "results.json", {"rows": rows, "hardware": measured_on})
    write_bytes(directory / "table.md", ("\n".join(lines) + "\n").encode())
    console.print("\n".join(lines), markup=False)


def _equivariance(directory: Path, scale: Scale, runner: ExperimentRunner, console: Console) -> None:
    rows = equivariance.measure_equivariance(scale, runner, console)
    _write(directory, rows, equivariance.table(rows), console)


ANALYSES = {
    "flops": Analysis("FLOPs of all sizes and encodings", "table 8", _flops),
    "rope": Analysis("LieRE in one dimension is RoPE", "appendix A", _rope),
    "equivariance": Analysis("How far encodings are from relative ones", "beyond the paper", _equivariance),
    "attention": Analysis("Attention of CLS by layer", "figure 12", _attention, draw_attention),
}
