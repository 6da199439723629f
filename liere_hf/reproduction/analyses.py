"""Experiments without arms: arithmetic on the models themselves, and what trained ones look at."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import scipy.linalg
import torch
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoImageProcessor, AutoModelForImageClassification, PreTrainedModel
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from ..configuration.arguments import PRESETS
from ..modeling.configuration_liere_vit import LiereViTConfig
from ..modeling.modeling_liere_vit import LiereViTForImageClassification
from ..modeling.skew_exponential import skew_matrix_exp
from ..report import hardware, write_bytes, write_json
from .experiments import ENCODINGS, Scale
from .runs import Arm, Workshop


@dataclass(frozen=True)
class Analysis:
    """What `run` writes into its directory is `table.md` and `results.json`, and `figure.png` where there is one."""

    title: str
    source: str
    run: Callable[[Path, Scale, Workshop, Console], None]


NUM_PICTURES = 16
# Table 8: relative overhead of the base model in per cent.
PAPER_OVERHEAD = {"RoPE-Mixed": 0.04, "LieRE8": 0.18, "LieRE64": 1.4}


def _flops(directory: Path, scale: Scale, workshop: Workshop, console: Console) -> None:
    """FLOPs of a forward pass of one image at 224 pixels, of all sizes, counted on the meta device."""
    rows = []
    for size, preset in PRESETS.items():
        counts = {encoding: count_flops(preset | options) for encoding, options in ENCODINGS.items()}
        for encoding, (flops, parameters) in counts.items():
            overhead = 100 * (flops / counts["absolute"][0] - 1)
            rows.append(
                {
                    "size": size,
                    "encoding": encoding,
                    "gflops": flops / 1e9,
                    "overhead_percent": overhead,
                    "paper_percent": PAPER_OVERHEAD.get(encoding) if size == "base" else None,
                    "num_parameters": parameters,
                }
            )
    lines = [
        "# FLOPs (table 8)",
        "",
        "Forward pass of one image of 224 pixels, patches of 16, rotations computed.",
        "",
    ]
    lines += ["| size | encoding | parameters | GFLOPs | over absolute, % | paper, % |", "|---|---|---|---|---|---|"]
    for row in rows:
        paper = "" if row["paper_percent"] is None else f"+{row['paper_percent']:g}"
        cells = [row["size"], row["encoding"], f"{row['num_parameters']:,}", f"{row['gflops']:.2f}"]
        cells += [f"{row['overhead_percent']:+.2f}", paper]
        lines.append(f"| {' | '.join(cells)} |")
    _write(directory, rows, lines, console)


def count_flops(fields: dict[str, Any]) -> tuple[int, int]:
    """FLOPs of a forward pass of one image of 224 pixels that computes its rotations, and parameters."""
    config = LiereViTConfig(image_size=224, patch_size=16, num_labels=1000, **fields)
    with torch.device("meta"):
        model = LiereViTForImageClassification(config).train()
        pixel_values = torch.empty(1, 3, 224, 224)
        with FlopCounterMode(display=False) as counter:
            model(pixel_values)
    return counter.get_total_flops(), model.num_parameters()


def _rope(directory: Path, scale: Scale, workshop: Workshop, console: Console) -> None:
    """Appendix A: in one dimension LieRE is RoPE in another basis, up to rounding."""
    rows = [{"block size": width, "largest_deviation": rope_deviation(width)} for width in (2, 8, 64)]
    lines = ["# LieRE in one dimension is RoPE (appendix A)", ""]
    lines += [
        "Scores of 64-wide queries and keys at positions 0 to 63, in float64: our rotations with random generators,",
        "against transformers' RoPE at the generators' angular frequencies after a change of basis.",
        "",
    ]
    lines += ["| block size | largest deviation of a score |", "|---|---|"]
    lines += [f"| {row['block size']} | {row['largest_deviation']:.1e} |" for row in rows]
    _write(directory, rows, lines, console)


def rope_deviation(width: int, num_positions: int = 64, seed: int = 0) -> float:
    """How far scores rotated by exp(p A) are from those of RoPE at A's frequencies, in A's own basis.

    A skew-symmetric A is Q S Q^T with S of 2 x 2 blocks, by the real Schur decomposition: exp(p A) = Q exp(p S) Q^T.
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
    # transformers' RoPE turns dimension i with i + 32; the basis has the pairs side by side.
    order = torch.cat((torch.arange(0, 64, 2), torch.arange(1, 64, 2)))
    angles = (positions[:, None] * frequencies).repeat(1, 2)
    in_basis = [(states @ basis)[None, None, :, order] for states in (query, key)]
    query, key = apply_rotary_pos_emb(*in_basis, angles.cos()[None], angles.sin()[None])
    return (ours - query[0, 0] @ key[0, 0].mT).abs().max().item()


def _attention(directory: Path, scale: Scale, workshop: Workshop, console: Console) -> None:
    """Figure 12: what CLS looks at in each layer, by encoding, by the models of the experiment accuracy."""
    seed = scale.seeds_of(scale.images)[0]
    maps, entropies = {}, []
    for encoding, options in ENCODINGS.items():
        arm = Arm(scale.images, {"encoding": encoding}, options)
        console.print(f"{encoding}: its model of the experiment accuracy, trained now if it is not there")
        model_dir = workshop.wait_for(arm, seed)
        model = AutoModelForImageClassification.from_pretrained(model_dir, attn_implementation="eager").eval()
        pictures = workshop.test_pictures(scale.images, NUM_PICTURES)
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
    lines += [f"| encoding | {' | '.join(f'layer {layer}' for layer in layers)} |", f"|{'---|' * (len(layers) + 1)}"]
    for encoding in maps:
        bits = [f"{row['entropy_bits']:.2f}" for row in entropies if row["encoding"] == encoding]
        lines.append(f"| {encoding} | {' | '.join(bits)} |")
    _draw_attention(directory / "figure.png", maps, np.asarray(pictures[0]))
    _write(directory, entropies, lines, console)


@torch.no_grad()
def layer_attention(model: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """Shares of CLS's attention to the patches, mean of heads: (layers, batch, *grid), each map summing to 1."""
    attentions = torch.stack(model(pixel_values, output_attentions=True).attentions)
    patches = attentions[..., 0, model.config.num_prefix_tokens :].mean(dim=2)
    return (patches / patches.sum(-1, keepdim=True)).unflatten(-1, model.config.grid_size)


def entropy(attention: torch.Tensor) -> torch.Tensor:
    """Of maps (layers, batch, *grid), in bits, (layers, batch)."""
    shares = attention.flatten(2)
    return -torch.special.xlogy(shares, shares).sum(-1) / math.log(2)


def _draw_attention(path: Path, maps: dict[str, torch.Tensor], picture: np.ndarray) -> None:
    num_layers = max(len(layers) for layers in maps.values())
    size = (1.7 * (num_layers + 1), 1.9 * len(maps))
    figure, panels = plt.subplots(len(maps), num_layers + 1, figsize=size, layout="constrained", squeeze=False)
    extent = (0, picture.shape[1], picture.shape[0], 0)
    for row, (encoding, layers) in zip(panels, maps.items(), strict=True):
        row[0].imshow(picture, extent=extent)
        row[0].set_ylabel(encoding)
        for number, (axes, layer) in enumerate(zip(row[1:], layers, strict=True), start=1):
            image = axes.imshow(layer, cmap="viridis", extent=extent, vmin=0)
            axes.set_title(f"layer {number}" if row is panels[0] else "")
            figure.colorbar(image, ax=axes, shrink=0.7)
    for axes in panels.flat:
        axes.set(xticks=[], yticks=[])
    figure.suptitle("Share of CLS's attention by patch, mean of heads")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _write(directory: Path, rows: list[dict[str, Any]], lines: list[str], console: Console) -> None:
    measured_on = hardware()
    lines += ["", f"Measured on {measured_on['device']}."]
    write_json(directory / "results.json", {"rows": rows, "hardware": measured_on})
    write_bytes(directory / "table.md", ("\n".join(lines) + "\n").encode())
    console.print("\n".join(lines), markup=False)


ANALYSES = {
    "flops": Analysis("FLOPs of all sizes and encodings", "table 8", _flops),
    "rope": Analysis("LieRE in one dimension is RoPE", "appendix A", _rope),
    "attention": Analysis("Attention of CLS by layer", "figure 12", _attention),
}
