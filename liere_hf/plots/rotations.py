"""What the rotations of a model do to scores: by offset, by frequency, and how far they are from commuting."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from ..configuration import DataArguments
from ..data.resizing.processors import input_size as checked_input_size
from ..errors import InputError
from ..modeling.configuration_liere_vit import LiereViTConfig
from ..modeling.position_encodings import POSITION_ENCODINGS
from ..modeling.positions import grid_positions
from ..modeling.rotations import liere_rotations


@dataclass(frozen=True)
class OffsetScores:
    """Scores between equal contents at two patches, by the offset between these.

    Attributes:
        layers: which ones, counted from 1; (0,) for a table of absolute positions, added before the first layer.
        heads: which ones, counted from 1; (0,) for such a table.
        grid_size: patches along each axis.
        mean: over all pairs of patches with an offset, (layers, heads, *(2 n - 1 for n in grid_size)): offset 0 is in
            the middle. 1 is the score of a content with itself.
        spread: standard deviation over these pairs, of the same shape. 0 where the encoding is relative.
    """

    layers: tuple[int, ...]
    heads: tuple[int, ...]
    grid_size: tuple[int, ...]
    mean: torch.Tensor
    spread: torch.Tensor


@dataclass(frozen=True)
class Spectrum:
    """Frequencies of generators.

    Attributes:
        layers: which ones, counted from 1.
        heads: which ones, counted from 1.
        frequencies: in radians per patch, (layers, heads, axes, head_dim / 2), 0 or more, in ascending order.
    """

    layers: tuple[int, ...]
    heads: tuple[int, ...]
    frequencies: torch.Tensor


@dataclass(frozen=True)
class Commutators:
    """How far the generators of two axes are from commuting.

    Attributes:
        layers: which ones, counted from 1.
        heads: which ones, counted from 1.
        axes: the pairs of axes, counted from 0.
        norms: |A B - B A| / (|A| |B|) with Frobenius norms of the blocks A and B, averaged over the blocks of a head,
            (layers, heads, pairs): 0 where they commute, at most the square root of 2.
    """

    layers: tuple[int, ...]
    heads: tuple[int, ...]
    axes: tuple[tuple[int, int], ...]
    norms: torch.Tensor


def rotation_scores(rotations: torch.Tensor) -> torch.Tensor:
    """The score between equal contents at every two patches, averaged over contents.

    The score of a content u with itself, at patches p and q, is u^T R(p)^T R(q) u. Its mean over all u of length 1 is
    the trace of R(p)^T R(q) over the head dimension.

    Args:
        rotations: block-diagonal ones of one layer, (patches, heads, blocks, b, b).

    Returns:
        Tensor of shape (heads, patches, patches), 1 for a patch with itself.
    """
    head_dim = rotations.shape[2] * rotations.shape[3]
    flat = rotations.flatten(2).transpose(0, 1)
    return flat @ flat.mT / head_dim


def table_similarities(table: torch.Tensor) -> torch.Tensor:
    """The cosine similarity of every two entries of a table of absolute positions.

    Args:
        table: (patches, hidden_size).

    Returns:
        Tensor of shape (patches, patches).
    """
    unit = functional.normalize(table, dim=-1)
    return unit @ unit.mT


def offset_scores(
    model: PreTrainedModel,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    input_size: Sequence[int] | None = None,
) -> OffsetScores:
    """The score between equal contents at two patches, averaged over contents, by offset: see `rotation_scores`.

    Args:
        layers: counted from 1; all by default.
        heads: counted from 1; all by default.
        input_size: pixels, one value or one per axis; the training size by default.

    Raises:
        InputError: a model without rotations, no such layer or head, or a size that patches do not divide.
    """
    config = model.config
    layers, heads = chosen(model, layers, heads)
    grid_size = grid_of(config, input_size)
    positions = grid_positions(grid_size, config.grid_size, config.position_mode, torch.float64, model.device)
    means, spreads = [], []
    for of_layer in _raw_generators(model, layers, heads).split(1):
        rotations = liere_rotations(positions[None], of_layer)[0, 0]
        mean, spread = _by_offset(rotation_scores(rotations), grid_size)
        means.append(mean)
        spreads.append(spread)
    return OffsetScores(layers, heads, grid_size, torch.stack(means).cpu(), torch.stack(spreads).cpu())


def table_scores(model: PreTrainedModel, input_size: Sequence[int] | None = None) -> OffsetScores:
    """The cosine similarity of the entries of a model's table of absolute positions, by offset.

    Args:
        input_size: as in `offset_scores`; at other sizes than the training size, the table is interpolated.

    Raises:
        InputError: a model without such a table, or a size that patches do not divide.
    """
    embeddings = model.base_model.embeddings
    if embeddings.position_embeddings is None:
        raise InputError(f"position_encoding is {model.config.position_encoding!r}, which has no table of positions")
    grid_size = grid_of(model.config, input_size)
    with torch.no_grad():
        scores = table_similarities(embeddings.absolute_positions(grid_size)[0].double())
    mean, spread = _by_offset(scores[None], grid_size)
    return OffsetScores((0,), (0,), grid_size, mean[None].cpu(), spread[None].cpu())


def spectrum(
    model: PreTrainedModel,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    input_size: Sequence[int] | None = None,
) -> Spectrum:
    """The frequencies of every generator: its eigenvalues are +-i times them.

    Args:
        layers: counted from 1; all by default.
        heads: counted from 1; all by default.
        input_size: as in `offset_scores`; it matters where `position_mode` stretches coordinates.

    Raises:
        InputError: as in `offset_scores`.
    """
    layers, heads = chosen(model, layers, heads)
    generators = _skew_generators(model, layers, heads)
    # i A is Hermitian: its eigenvalues are real, in pairs of both signs.
    eigenvalues = torch.linalg.eigvalsh(1j * generators)
    frequencies = eigenvalues[..., eigenvalues.shape[-1] // 2 :].clamp(min=0).flatten(3)
    spacing = _spacing(model.config, grid_of(model.config, input_size)).to(frequencies)
    return Spectrum(layers, heads, (frequencies * spacing[:, None]).sort(dim=-1).values.cpu())


def commutators(
    model: PreTrainedModel, layers: Sequence[int] | None = None, heads: Sequence[int] | None = None
) -> Commutators:
    """How far the generators of every two axes are from commuting.

    Args:
        layers: counted from 1; all by default.
        heads: counted from 1; all by default.

    Raises:
        InputError: as in `offset_scores`, or a model with one axis.
    """
    if model.config.num_axes < 2:
        raise InputError("the model has one axis, whose rotations all commute: there are no commutators to show")
    layers, heads = chosen(model, layers, heads)
    generators = _skew_generators(model, layers, heads)
    pairs = tuple(combinations(range(model.config.num_axes), 2))
    found = []
    for first, second in pairs:
        one, other = generators[:, :, first], generators[:, :, second]
        product = torch.linalg.matrix_norm(one) * torch.linalg.matrix_norm(other)
        norm = torch.linalg.matrix_norm(one @ other - other @ one)
        found.append(torch.where(product > 0, norm / product, 0).mean(-1))
    return Commutators(layers, heads, pairs, torch.stack(found, dim=-1).cpu())


def has_rotations(model: PreTrainedModel) -> bool:
    return POSITION_ENCODINGS[model.config.position_encoding].is_rotary


def has_table(model: PreTrainedModel) -> bool:
    return model.base_model.embeddings.position_embeddings is not None


def chosen(
    model: PreTrainedModel, layers: Sequence[int] | None, heads: Sequence[int] | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Layers and heads, counted from 1; all where none are given.

    Raises:
        InputError: a model without rotations, or no such layer or head.
    """
    config = model.config
    if not has_rotations(model):
        raise InputError(f"position_encoding is {config.position_encoding!r}, which rotates nothing")
    return (
        counted("layer", layers, config.num_hidden_layers),
        counted("head", heads, config.num_attention_heads),
    )


def counted(name: str, numbers: Sequence[int] | None, count: int) -> tuple[int, ...]:
    """Some of the numbers 1 to `count`, all of them for None.

    Raises:
        InputError: a number that is not one of these.
    """
    if numbers is None:
        return tuple(range(1, count + 1))
    for number in numbers:
        if not 1 <= number <= count:
            raise InputError(f"{name} is {number}, allowed are 1 to {count}")
    return tuple(numbers)


def grid_of(config: LiereViTConfig, input_size: Sequence[int] | None) -> tuple[int, ...]:
    """Patches along each axis.

    Raises:
        InputError: a size with another number of axes, or that patches do not divide.
    """
    size = checked_input_size(config, DataArguments(input_size=None if input_size is None else list(input_size)))
    return config.grid_of(size)


@torch.no_grad()
def _raw_generators(model: PreTrainedModel, layers: Sequence[int], heads: Sequence[int]) -> torch.Tensor:
    """Raw generators in float64, (layers, axes, heads, blocks, b, b), also where all layers or heads share them."""
    config = model.config
    raw = model.base_model.rotations.raw_generators(model.device).double()
    raw = raw.expand(config.num_hidden_layers, -1, config.num_attention_heads, -1, -1, -1)
    return raw[[layer - 1 for layer in layers]][:, :, [head - 1 for head in heads]]


def _skew_generators(model: PreTrainedModel, layers: Sequence[int], heads: Sequence[int]) -> torch.Tensor:
    """Generators in radians per unit of the coordinates: (layers, heads, axes, blocks, b, b)."""
    upper = _raw_generators(model, layers, heads).triu(1)
    return (upper - upper.mT).transpose(1, 2)


def _spacing(config: LiereViTConfig, grid_size: tuple[int, ...]) -> torch.Tensor:
    """The difference of the coordinates of neighbouring patches along each axis, 0 along one of a single patch."""
    positions = grid_positions(grid_size, config.grid_size, config.position_mode, torch.float64)
    on_grid = positions.unflatten(0, grid_size)
    neighbour = tuple(min(1, steps - 1) for steps in grid_size)
    return on_grid[neighbour] - positions[0]


def _by_offset(scores: torch.Tensor, grid_size: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of scores between patches, over the pairs of each offset.

    Args:
        scores: between a first and a second patch, (heads, patches, patches).

    Returns:
        Two tensors of shape (heads, *(2 n - 1 for n in grid_size)), by second minus first place.
    """
    places = torch.cartesian_prod(*(torch.arange(steps) for steps in grid_size)).view(-1, len(grid_size))
    offset_of_pair = torch.zeros(len(places), len(places), dtype=torch.long)
    for axis, steps in enumerate(grid_size):
        difference = places[None, :, axis] - places[:, None, axis]
        offset_of_pair = offset_of_pair * (2 * steps - 1) + difference + steps - 1
    offset_of_pair, scores = offset_of_pair.flatten().to(scores.device), scores.flatten(1)
    extents = [2 * steps - 1 for steps in grid_size]
    counts = offset_of_pair.bincount(minlength=torch.Size(extents).numel())

    def mean(values: torch.Tensor) -> torch.Tensor:
        return values.new_zeros(len(values), len(counts)).index_add_(1, offset_of_pair, values) / counts

    means = mean(scores)
    spreads = mean((scores - means[:, offset_of_pair]).square()).sqrt()
    return means.unflatten(1, extents), spreads.unflatten(1, extents)
