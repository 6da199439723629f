"""The share of rotations that offsets do not determine, against its definition pair by pair."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from liere_hf import LiereViTConfig, LiereViTModel
from liere_hf.modeling.position_encodings import POSITION_ENCODINGS
from liere_hf.reproduction import equivariance
from liere_hf.reproduction.equivariance import beyond_offsets, measure_equivariance, of_model, table
from liere_hf.reproduction.experiments import STARTS, read_scale
from liere_hf.reproduction.runner import ExperimentRunner

COMMUTING = ("rope_mixed", "comrope_ld", "comrope_ap", "string")


def untrained(num_axes: int, **options) -> LiereViTModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    image_size = [6, 8, 10][:num_axes]
    return LiereViTModel(
        LiereViTConfig(**sizes, image_size=image_size, patch_size=[2] * num_axes, head_dim=24, **options)
    )


def pair_by_pair(rotations: np.ndarray, grid_size: tuple[int, ...]) -> float:
    """Of one head and block: the variance of R(p)^T R(q) among pairs of one offset, over b."""
    places = [*itertools.product(*map(range, grid_size))]
    by_offset: dict[tuple[int, ...], list[np.ndarray]] = {}
    for (p, at_p), (q, at_q) in itertools.product(zip(places, rotations, strict=True), repeat=2):
        by_offset.setdefault(tuple(np.subtract(q, p)), []).append(at_p.T @ at_q)
    groups = [np.stack(group) for group in by_offset.values() if len(group) > 1]
    variances = [np.square(group - group.mean(0)).sum((1, 2)).mean() for group in groups]
    return float(np.mean(variances)) / rotations.shape[-1]


@settings(max_examples=25, deadline=None)
@given(
    grid_size=st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple).filter(lambda grid: np.prod(grid) > 1),
    width=st.sampled_from([2, 4]),
    seed=st.integers(0, 99),
)
def test_definition(grid_size, width, seed):
    random = torch.randn(int(np.prod(grid_size)), 2, 3, width, width, generator=torch.Generator().manual_seed(seed))
    rotations = torch.linalg.qr(random).Q
    found = beyond_offsets(rotations, grid_size)
    assert found.shape == (2, 3)
    for head, block in itertools.product(range(2), range(3)):
        expected = pair_by_pair(rotations[:, head, block].double().numpy(), grid_size)
        assert found[head, block].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("encoding", [name for name, each in POSITION_ENCODINGS.items() if each.is_rotary])
@pytest.mark.parametrize("num_axes", [1, 2, 3])
def test_encodings_whose_generators_commute_are_relative(encoding, num_axes):
    model = untrained(num_axes, position_encoding=encoding, generator_init="uniform")
    shares = of_model(model)
    assert len(shares) == model.config.num_hidden_layers
    if encoding in (*COMMUTING, "visionllama") or num_axes == 1:
        assert max(map(abs, shares)) < 1e-5
    else:
        assert encoding == "liere"
        assert min(shares) > 0.05


@pytest.mark.parametrize(("init", "is_relative"), [("planar", True), ("random_basis", True), ("random_bases", False)])
def test_liere_is_relative_where_it_starts_so(init, is_relative):
    model = untrained(2, generator_init=init)
    assert (max(map(abs, of_model(model))) < 1e-5) == is_relative
    with torch.no_grad():
        model.rotations.generators.add_(0.5 * torch.randn_like(model.rotations.generators))
    assert min(of_model(model)) > 1e-3


def test_it_is_measured_over_a_training(tmp_path, monkeypatch):
    """At a high learning rate LieRE leaves its relative start step by step; RoPE-Mixed cannot."""
    chosen = [
        (title, "planar, fast", options | STARTS["planar, fast"])
        for title, options in (
            ("RoPE-Mixed", {"position_encoding": "rope_mixed"}),
            ("LieRE8", {"position_encoding": "liere", "generator_block_size": 8}),
        )
    ]
    monkeypatch.setattr(equivariance, "_settings", lambda: chosen)
    flags = ["--train_examples", "512", "--eval_examples", "16", "--eval_strategy", "no", "--learning_rate", "0.01"]
    runner = ExperimentRunner(tmp_path, {}, [*flags, "--warmup_steps", "0", "--disable_tqdm", "true"])
    rope, liere = measure_equivariance(read_scale("cpu"), runner, Console(quiet=True))
    values = [np.mean(layers) for layers in (liere["before"], *liere["during"], liere["after"])]
    assert values[0] == pytest.approx(0, abs=1e-6)
    assert values == sorted(values)
    assert values[1] > 1e-4
    assert np.abs([rope["before"], *rope["during"], rope["after"]]).max() < 1e-5
    lines = table([rope, liere])
    assert lines[-1].startswith(f"| LieRE8 | planar, fast | 0.0 | {100 * values[1]:.1f} | {100 * values[2]:.1f} | ")
