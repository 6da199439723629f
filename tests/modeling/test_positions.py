"""Coordinates against explicit formulas, and the position table against torch's interpolation."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional

from liere_hf import grid_positions
from liere_hf.modeling.positions import INTERPOLATIONS, interpolate_position_table, stretched_positions

steps_per_axis = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=4)
seeds = st.integers(0, 2**31)

FORMULAS = {
    "sequential": lambda steps, training: np.arange(steps) / max(training - 1, 1),
    "linspace": lambda steps, training: np.linspace(0, steps / training, steps),
    "rescaled": lambda steps, training: np.linspace(0, 1, steps),
}


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def read_table(table, grid_size):
    """A table of shape (*training grid, hidden) interpolated to another grid, as (tokens, hidden)."""
    training_grid_size = table.shape[:-1]
    positions = stretched_positions(grid_size, training_grid_size)[None]
    return interpolate_position_table(table.flatten(0, -2), training_grid_size, positions)[0]


@pytest.mark.parametrize("mode", FORMULAS)
@settings(deadline=None, max_examples=40)
@given(axes=steps_per_axis)
def test_grid_positions_equal_the_formula_of_each_mode(mode, axes):
    grid_size, training_grid_size = zip(*axes, strict=True)
    axes = [FORMULAS[mode](steps, training) for steps, training in axes]
    expected = np.array(list(itertools.product(*axes)))
    positions = grid_positions(grid_size, training_grid_size, mode, dtype=torch.float64)
    assert positions.shape == (np.prod(grid_size), len(grid_size))
    np.testing.assert_allclose(positions.numpy(), expected, rtol=0, atol=1e-14)


@settings(deadline=None, max_examples=20)
@given(grid_size=st.lists(st.integers(2, 6), min_size=1, max_size=4))
def test_all_modes_agree_at_the_training_size(grid_size):
    expected = list(itertools.product(*(np.linspace(0, 1, steps) for steps in grid_size)))
    for mode in FORMULAS:
        np.testing.assert_allclose(grid_positions(grid_size, grid_size, mode).numpy(), expected, atol=1e-6)


def test_grid_positions_default_is_float32_rescaled_with_the_last_axis_fastest():
    positions = grid_positions((2, 3), (2, 2))
    assert positions.dtype == torch.float32
    assert positions.tolist() == [[0, 0], [0, 0.5], [0, 1], [1, 0], [1, 0.5], [1, 1]]


def test_unknown_mode():
    with pytest.raises(ValueError, match="position_mode is 'polar', allowed are sequential, linspace, rescaled"):
        grid_positions((2, 2), (2, 2), "polar")


@pytest.mark.parametrize("arguments", [((2, 2), (2,)), ((2,), (2, 2))])
def test_grids_of_different_dimension(arguments):
    with pytest.raises(ValueError):
        grid_positions(*arguments)


@settings(deadline=None, max_examples=50)
@given(
    training=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    grid_size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    seed=seeds,
)
def test_stretched_table_equals_torch_bicubic_in_2d(training, grid_size, seed):
    table = normal(*training, 3, seed=seed)
    expected = functional.interpolate(
        table.permute(2, 0, 1)[None].double(), size=grid_size, mode="bicubic", align_corners=False
    )
    torch.testing.assert_close(read_table(table, grid_size).double(), expected[0].flatten(1).mT, rtol=0, atol=2e-5)


@settings(deadline=None, max_examples=50)
@given(
    training=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    grid_size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    seed=seeds,
)
def test_antialiased_table_equals_pillows_bicubic(training, grid_size, seed):
    """Pillow, since torch's antialiased bicubic is wrong where the result is one pixel wide."""
    table = normal(*training, seed=seed)
    expected = np.asarray(Image.fromarray(table.numpy()).resize(grid_size[::-1], Image.Resampling.BICUBIC))
    spacing = [before / now for before, now in zip(training, grid_size, strict=True)]
    positions = stretched_positions(grid_size, training)[None]
    values = interpolate_position_table(table.reshape(-1, 1), training, positions, "antialiased_cubic", spacing)
    np.testing.assert_allclose(values.reshape(grid_size).numpy(), expected, rtol=0, atol=2e-5)


@settings(deadline=None, max_examples=30)
@given(training=st.integers(1, 8), steps=st.integers(1, 16), seed=seeds)
def test_stretched_table_equals_torch_bicubic_in_1d(training, steps, seed):
    table = normal(training, 3, seed=seed)
    expected = functional.interpolate(
        table.mT[None, :, None].double(), size=(1, steps), mode="bicubic", align_corners=False
    )
    torch.testing.assert_close(read_table(table, (steps,)).double(), expected[0, :, 0].mT, rtol=0, atol=2e-5)


@settings(deadline=None, max_examples=20)
@given(training=st.tuples(*[st.integers(1, 4)] * 3), grid_size=st.tuples(*[st.integers(1, 6)] * 3), seed=seeds)
def test_stretched_table_equals_torch_bicubic_per_axis_in_3d(training, grid_size, seed):
    """The interpolation is separable: torch interpolates the first axis with a singleton, then the two others."""
    table = normal(*training, 2, seed=seed)
    volume = table.permute(3, 0, 1, 2).double()
    frames = functional.interpolate(
        volume.flatten(2)[None], size=(grid_size[0], volume[0, 0].numel()), mode="bicubic", align_corners=False
    )
    frames = frames.unflatten(-1, training[1:])[0].transpose(0, 1)
    expected = functional.interpolate(frames, size=grid_size[1:], mode="bicubic", align_corners=False)
    torch.testing.assert_close(
        read_table(table, grid_size).double(), expected.movedim(1, -1).flatten(0, 2), rtol=0, atol=2e-5
    )


@settings(deadline=None, max_examples=50)
@given(
    axes=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 9)), min_size=1, max_size=3),
    seed=seeds,
)
def test_linear_table_equals_torchs_linear_bilinear_and_trilinear(axes, seed):
    training, grid_size = zip(*axes, strict=True)
    table = normal(*training, 3, seed=seed)
    mode = ("linear", "bilinear", "trilinear")[len(axes) - 1]
    expected = functional.interpolate(
        table.movedim(-1, 0)[None].double(), size=grid_size, mode=mode, align_corners=False
    )
    positions = stretched_positions(grid_size, training)[None]
    values = interpolate_position_table(table.flatten(0, -2), training, positions, "linear")
    torch.testing.assert_close(values[0].double(), expected[0].flatten(1).mT, rtol=0, atol=2e-5)


def test_unknown_interpolation():
    message = "position_embedding_interpolation is 'nearest', allowed are cubic, antialiased_cubic, linear"
    with pytest.raises(ValueError, match=message):
        interpolate_position_table(normal(4, 2), (2, 2), torch.zeros(1, 1, 2), "nearest")


@settings(deadline=None, max_examples=20)
@given(grid_size=st.lists(st.integers(1, 5), min_size=1, max_size=3), seed=seeds)
def test_stretching_over_the_training_grid_itself_keeps_its_coordinates(grid_size, seed):
    expected = list(itertools.product(*(np.linspace(0, 1, steps) for steps in grid_size)))
    np.testing.assert_allclose(stretched_positions(grid_size, grid_size).numpy(), expected, atol=1e-6)
    table = normal(*grid_size, 3, seed=seed)
    torch.testing.assert_close(read_table(table, grid_size), table.flatten(0, -2), rtol=0, atol=1e-5)


@pytest.mark.parametrize("grid_size", [(5,), (3, 4), (2, 3, 4)])
def test_table_is_read_exactly_at_grid_points_in_any_order_and_batch(grid_size):
    table = normal(int(np.prod(grid_size)), 3)
    order = torch.stack([torch.randperm(len(table), generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)])
    positions = grid_positions(grid_size, grid_size)[order]
    values = interpolate_position_table(table, grid_size, positions)
    torch.testing.assert_close(values, table[order], rtol=0, atol=1e-5)


@pytest.mark.parametrize("interpolation", ["cubic", "linear"])
def test_the_border_is_extended_outside(interpolation):
    table = normal(3, 4, 5)
    outside = torch.tensor([[[-2.0, -3.0], [-2.0, 1 / 3], [4.0, 9.0], [0.5, 7.0]]])
    expected = torch.stack((table[0, 0], table[0, 1], table[2, 3], table[1, 3]))
    values = interpolate_position_table(table.flatten(0, 1), (3, 4), outside, interpolation)[0]
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@settings(deadline=None, max_examples=30)
@given(coordinates=st.lists(st.floats(-3, 4), min_size=2, max_size=2))
def test_a_constant_table_is_constant_everywhere(interpolation, coordinates):
    """The interpolation weights add up to 1."""
    table = torch.full((12, 1), 3.0)
    values = interpolate_position_table(table, (3, 4), torch.tensor([[coordinates]]), interpolation)
    torch.testing.assert_close(values, torch.full((1, 1, 1), 3.0), rtol=1e-5, atol=0)


def test_gradients_of_the_table_and_of_coordinates():
    """The table in float64; interpolated values change with the coordinate (weights are float32)."""
    table = normal(6, 2).double().requires_grad_()
    positions = torch.tensor([[[0.13, 0.71], [0.9, 0.31]]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda table: interpolate_position_table(table, (2, 3), positions), table)
    positions.requires_grad_()
    values = interpolate_position_table(table, (2, 3), positions)
    (gradient,) = torch.autograd.grad(values.sum(), positions)
    step = 1e-2
    for index in np.ndindex(1, 2, 2):
        shift = torch.zeros_like(positions)
        shift[index] = step
        high, low = (interpolate_position_table(table, (2, 3), positions + sign * shift).sum() for sign in (1, -1))
        assert gradient[index].item() == pytest.approx((high - low).item() / (2 * step), abs=2e-2)
