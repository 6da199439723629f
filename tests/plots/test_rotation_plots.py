"""What pictures of rotations show, against scores of queries and keys, dense eigenvalues and position vectors."""

import itertools

import numpy as np
import pytest
import torch
from plotted_models import GRIDS, PATCH, classifier, pixels

from liere_hf.errors import InputError
from liere_hf.modeling.position_encodings import POSITION_ENCODINGS
from liere_hf.modeling.positions import grid_positions
from liere_hf.modeling.rotary_application import rotate_queries_and_keys
from liere_hf.plots import (
    commutators,
    offset_scores,
    plot_commutators,
    plot_offset_scores,
    plot_spectrum,
    rotation_plots,
    spectrum,
    table_scores,
)

ROTARY = [name for name, encoding in POSITION_ENCODINGS.items() if encoding.is_rotary]
COMMUTING = ("visionllama", "rope_mixed", "comrope_ld", "comrope_ap", "string")
# Other numbers of patches than at the training size, with spacings that float32 holds exactly.
OTHER_GRIDS = {1: (9,), 2: (5, 2), 3: (3, 2, 3)}


def rotations_in_a_forward_pass(model, inputs):
    """The rotations that the attention of each layer receives."""
    seen = []
    hooks = [
        layer.attention.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[2]))
        for layer in model.base_model.layers
    ]
    with torch.no_grad():
        model(inputs)
    for hook in hooks:
        hook.remove()
    return seen


def by_offset(scores: np.ndarray, grid_size: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of (patches, patches) over the pairs of each offset, pair by pair."""
    places = [*itertools.product(*map(range, grid_size))]
    groups = {}
    for (i, first), (j, second) in itertools.product(enumerate(places), repeat=2):
        offset = tuple(np.subtract(second, first) + np.subtract(grid_size, 1))
        groups.setdefault(offset, []).append(scores[i, j])
    mean, spread = np.full((2, *(2 * steps - 1 for steps in grid_size)), np.nan)
    for offset, values in groups.items():
        mean[offset], spread[offset] = np.mean(values), np.std(values)
    return mean, spread


@pytest.mark.parametrize("num_axes", [1, 2, 3])
@pytest.mark.parametrize("encoding", ROTARY)
def test_offset_scores_are_scores_of_equal_contents(encoding, num_axes):
    """Queries equal to keys, at every patch the same: the vectors of a basis, so that their mean is exact."""
    model = classifier(num_axes, position_encoding=encoding, num_register_tokens=1).double()
    grid_size = OTHER_GRIDS[num_axes]
    found = offset_scores(model, layers=[3, 1], heads=[2], input_size=[PATCH * steps for steps in grid_size])
    assert (found.layers, found.heads, found.grid_size) == ((3, 1), (2,), grid_size)
    rotations = rotations_in_a_forward_pass(model, pixels(num_axes, grid_size).double())
    basis = torch.linalg.qr(torch.randn(24, 24, dtype=torch.float64)).Q.contiguous()
    for index, layer in enumerate((3, 1)):
        contents = basis[:, None, None].expand(-1, rotations[0].shape[1], 2, -1)
        query, key = rotate_queries_and_keys(contents, contents, rotations[layer - 1])
        scores = torch.einsum("bqd,bkd->qk", query[:, 2:, 1], key[:, 2:, 1]) / 24
        mean, spread = by_offset(scores.numpy(), grid_size)
        np.testing.assert_allclose(found.mean[index, 0], mean, atol=1e-10)
        np.testing.assert_allclose(found.spread[index, 0], spread, atol=1e-7)
    if encoding in COMMUTING or num_axes == 1:
        assert found.spread.max() < 1e-7
    else:
        assert found.spread.max() > 0.01


@pytest.mark.parametrize("grid_size", [GRIDS[2], (5, 2)], ids=["training size", "other size"])
@pytest.mark.parametrize("encoding", ["absolute", "liere"])
def test_table_scores_are_cosines_of_what_is_added_to_patches(encoding, grid_size):
    model = classifier(position_encoding=encoding, use_absolute_position_embeddings=True)
    found = table_scores(model, [PATCH * steps for steps in grid_size])
    embeddings, inputs = model.base_model.embeddings, pixels(2, grid_size)
    with torch.no_grad():
        added = embeddings(inputs)[0][0, 1:] - embeddings.patch_embeddings(inputs)[0].flatten(0, -2)
    added = added.double().numpy()
    added /= np.linalg.norm(added, axis=1, keepdims=True)
    mean, spread = by_offset(added @ added.T, grid_size)
    np.testing.assert_allclose(found.mean[0, 0], mean, atol=1e-5)
    np.testing.assert_allclose(found.spread[0, 0], spread, atol=1e-5)


def dense_generator(model, layer: int, head: int, axis: int) -> torch.Tensor:
    """A generator as one matrix (head_dim, head_dim), from the encoding's parameters."""
    config = model.config
    encoding = POSITION_ENCODINGS[config.position_encoding]
    module = model.base_model.rotations
    parameters = {name: getattr(module, name) for name in encoding.parameters}
    raw = encoding.generators(config, parameters, torch.device("cpu")).detach().double()
    blocks = raw[layer % raw.shape[0], axis, head % raw.shape[2]]
    return torch.block_diag(*(block.triu(1) - block.triu(1).T for block in blocks))


@pytest.mark.parametrize("mode", ["sequential", "centered"])
@pytest.mark.parametrize("num_axes", [1, 2, 3])
@pytest.mark.parametrize("encoding", ROTARY)
def test_spectrum_is_that_of_dense_generators(encoding, num_axes, mode):
    model = classifier(num_axes, position_encoding=encoding, position_mode=mode)
    grid_size = OTHER_GRIDS[num_axes]
    found = spectrum(model, layers=[2], heads=[2, 1], input_size=[PATCH * steps for steps in grid_size])
    assert found.frequencies.shape == (1, 2, num_axes, 12)
    coordinates = grid_positions(grid_size, GRIDS[num_axes], mode, torch.float64).unflatten(0, grid_size)
    for axis in range(num_axes):
        along = coordinates[tuple(slice(None) if each == axis else 0 for each in range(num_axes))][:, axis]
        spacing = along[1] - along[0]
        for index, head in enumerate((2, 1)):
            eigenvalues = torch.linalg.eigvals(spacing * dense_generator(model, 1, head - 1, axis))
            assert eigenvalues.real.abs().max() < 1e-10
            expected = eigenvalues.imag.sort().values[12:].clamp(min=0)
            torch.testing.assert_close(found.frequencies[0, index, axis], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("encoding", COMMUTING)
def test_frequencies_are_in_radians_per_patch(encoding):
    """Where only the offset counts, the score of neighbours is the mean cosine of the frequencies."""
    model = classifier(position_encoding=encoding)
    scores, frequencies = offset_scores(model), spectrum(model).frequencies
    rows, columns = GRIDS[2]
    expected = torch.stack([scores.mean[:, :, rows, columns - 1], scores.mean[:, :, rows - 1, columns]], dim=-1)
    torch.testing.assert_close(frequencies.cos().mean(-1), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("num_axes", [2, 3])
@pytest.mark.parametrize("encoding", ROTARY)
def test_commutators(encoding, num_axes):
    model = classifier(num_axes, position_encoding=encoding)
    found = commutators(model)
    width = model.config.generator_block_size
    assert found.axes == (((0, 1),) if num_axes == 2 else ((0, 1), (0, 2), (1, 2)))
    for layer, head, (pair, (first, second)) in itertools.product(range(3), range(2), enumerate(found.axes)):
        one, other = (dense_generator(model, layer, head, axis).numpy() for axis in (first, second))
        shares = []
        for start in range(0, 24, width):
            a, b = (each[start : start + width, start : start + width] for each in (one, other))
            product = np.linalg.norm(a) * np.linalg.norm(b)
            shares.append(np.linalg.norm(a @ b - b @ a) / product if product else 0)
        assert found.norms[layer, head, pair].item() == pytest.approx(np.mean(shares), abs=1e-12)
    is_commuting = encoding in COMMUTING
    assert (found.norms.max() < 1e-6) == is_commuting


def test_shared_generators_serve_all_layers_and_heads():
    model = classifier(share_generators_across_layers=True, share_generators_across_heads=True)
    for values in (offset_scores(model).mean, spectrum(model).frequencies, commutators(model).norms):
        assert values.shape[:2] == (3, 2)
        assert values.equal(values[:1, :1].expand_as(values))


def drawn_maps(plot) -> list[np.ndarray]:
    """The arrays of the maps of a figure, colour bars aside."""
    return [image.get_array().data for axes in plot.figure.get_axes() for image in axes.images]


def test_figures_show_the_numbers():
    model = classifier()
    plot = plot_offset_scores(model, layers=[2], heads=[1, 2])
    shown = drawn_maps(plot)
    expected = offset_scores(model, [2], [1, 2])
    assert len(shown) == 4
    for index in range(2):
        np.testing.assert_array_equal(shown[index], expected.mean[0, index])
        np.testing.assert_array_equal(shown[index + 2], expected.spread[0, index])
    assert f"{expected.spread.max():.3g}" in plot.caption

    plot = plot_commutators(model)
    np.testing.assert_array_equal(drawn_maps(plot)[0], commutators(model).norms[..., 0])

    plot = plot_spectrum(model, layers=[1])
    points = [offsets for axes in plot.figure.axes for offsets in [each.get_offsets() for each in axes.collections]]
    # Axis by axis, head by head.
    for number, (axis, head) in enumerate(itertools.product(range(2), range(2))):
        np.testing.assert_allclose(points[number][:, 1], plot.numbers.frequencies[0, head, axis])


def test_planes_of_three_axes_go_through_offset_zero():
    model = classifier(3)
    plot = plot_offset_scores(model, layers=[1], heads=[2])
    mean = offset_scores(model, [1], [2]).mean[0, 0]
    for shown, expected in zip(drawn_maps(plot)[:3], (mean[:, :, 4], mean[:, 2], mean[1]), strict=True):
        np.testing.assert_array_equal(shown, expected)


@pytest.mark.parametrize("num_axes", [1, 2, 3])
@pytest.mark.parametrize(
    "encoding",
    [
        pytest.param(name, marks=() if name in ("absolute", "none", "liere") else pytest.mark.extensive)
        for name in POSITION_ENCODINGS
    ],
)
def test_every_encoding_has_its_pictures_or_a_reason(encoding, num_axes):
    model = classifier(num_axes, position_encoding=encoding)
    if encoding == "none":
        with pytest.raises(InputError, match="'none': the model has neither rotations nor a table"):
            rotation_plots(model)
        return
    found = rotation_plots(model)
    if encoding == "absolute":
        assert list(found.plots) == ["table"]
        assert list(found.missing) == ["offsets", "spectrum", "commutators"]
    else:
        assert list(found.plots) == ["offsets", "spectrum", *(["commutators"] if num_axes > 1 else [])]
        assert list(found.missing) == ([] if num_axes > 1 else ["commutators"])


@pytest.mark.parametrize(
    ("options", "arguments", "message"),
    [
        ({}, {"layers": [4]}, "layer is 4, allowed are 1 to 3"),
        ({}, {"layers": [0]}, "layer is 0, allowed are 1 to 3"),
        ({}, {"heads": [3]}, "head is 3, allowed are 1 to 2"),
        ({}, {"input_size": [7]}, "input_size is [7], which patch_size [2, 2] does not divide"),
        ({}, {"input_size": [8, 8, 8]}, "input_size is [8, 8, 8], the model has 2 axes"),
        ({"position_encoding": "absolute"}, {"layers": [1]}, "'absolute', which has no rotations: leave out"),
    ],
)
def test_what_a_model_does_not_have_is_one_sentence(options, arguments, message):
    with pytest.raises(InputError) as error:
        rotation_plots(classifier(**options), **arguments)
    assert message in str(error.value)


def test_functions_for_rotations_refuse_models_without():
    for function in (offset_scores, spectrum, commutators, plot_offset_scores, plot_spectrum, plot_commutators):
        with pytest.raises(InputError, match="'absolute', which rotates nothing"):
            function(classifier(position_encoding="absolute"))
    with pytest.raises(InputError, match="'liere', which has no table of positions"):
        table_scores(classifier())
    with pytest.raises(InputError, match="the model has one axis"):
        commutators(classifier(1))
