"""The position encodings: one entry each, which configuration, model, conversion, experiments and cards read.

Every rotary encoding is exp(sum_i p_i A_i) with block-diagonal skew-symmetric A_i (LieRE, equation 3). What makes it
an encoding of its own is where the generators A_i come from. A generator is a raw (b, b) matrix whose strict upper
triangle U gives A = U - U^T.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from transformers.configuration_utils import PreTrainedConfig

from .generator_initialization import (
    circulant_initial_values,
    dimension_sizes,
    factored_initial_values,
    free_initial_values,
    partitioned_initial_values,
)

Generators = Callable[[PreTrainedConfig, Mapping[str, torch.Tensor], torch.device], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class PositionEncoding:
    """What a position encoding is called, what it learns, and what its generators are.

    Attributes:
        title: its name for people, an attribute of "position encoding"; `{block_size}` stands for the block size.
        paper_name: where the paper's figures for it are filed in configuration/paper.yaml, and its name in the
            benchmark; again with `{block_size}`.
        colors: its colour in figures, by the block sizes that experiments compare; by None if it has only one or no
            blocks. No colour: not compared.
        generators: from configuration, parameters and device to raw generators of shape (layers, axes, heads, blocks,
            b, b), where layers and heads are 1 if shared. None if nothing is rotated.
        parameters: what the generators are computed from, by name: the dimensions of each learned tensor, in words
            that `parameter_shapes` knows.
        initial_values: from a configuration whose `generator_init` is not `uniform` to values of all parameters. None
            if the encoding starts uniform only.
        block_size: the width b of its blocks, None if `config.generator_block_size` decides.
        has_table: whether a learned table of absolute positions is added to the patches.
        check: raises a ValueError for a configuration that the encoding does not allow.
    """

    title: str
    paper_name: str
    colors: Mapping[int | None, str] = field(default_factory=dict)
    generators: Generators | None = None
    parameters: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    initial_values: Callable[[PreTrainedConfig], dict[str, torch.Tensor]] | None = None
    block_size: int | None = None
    has_table: bool = False
    check: Callable[[PreTrainedConfig], None] | None = None

    @property
    def is_rotary(self) -> bool:
        return self.generators is not None

    @property
    def learns(self) -> bool:
        """Whether the encoding has learned parameters, a table or those of its generators."""
        return self.has_table or bool(self.parameters)

    @property
    def default_init(self) -> str | None:
        """How new models start; None where nothing is learned."""
        return ("planar" if self.initial_values else "uniform") if self.parameters else None

    @property
    def has_free_generators(self) -> bool:
        """Whether the learned parameters are the generators themselves, so that they can take any value."""
        return self.generators is free_generators

    def parameter_shapes(self, config: PreTrainedConfig) -> dict[str, tuple[int, ...]]:
        """Shapes of the learned tensors that the generators are computed from."""
        sizes = dimension_sizes(config)
        return {name: tuple(sizes[word] for word in dimensions) for name, dimensions in self.parameters.items()}


def free_generators(
    config: PreTrainedConfig, parameters: Mapping[str, torch.Tensor], device: torch.device
) -> torch.Tensor:
    """LieRE (section 3), and RoPE-Mixed with blocks of width 2: the generators are learned."""
    return parameters["generators"]


def axial_generators(
    config: PreTrainedConfig, parameters: Mapping[str, torch.Tensor], device: torch.device
) -> torch.Tensor:
    """The fixed generators of VisionLLaMA's axial RoPE, as the authors of LieRE compute it.

    Each axis has head_dim // (2 * num_axes) frequencies exp(-4 * linspace(0, 1)), one axis after another; head
    dimensions left over at the end are not rotated.

    Returns:
        Tensor of shape (1, num_axes, 1, head_dim // 2, 2, 2): one layer and one head, for all.
    """
    num_frequencies = config.head_dim // (2 * config.num_axes)
    frequencies = torch.exp(-4 * torch.linspace(0, 1, num_frequencies, dtype=torch.float32, device=device))
    shape = (1, config.num_axes, 1, config.head_dim // 2, 2, 2)
    generators = torch.zeros(shape, dtype=torch.float32, device=device)
    for axis in range(config.num_axes):
        generators[0, axis, 0, axis * num_frequencies : (axis + 1) * num_frequencies, 0, 1] = -frequencies
    return generators


def factored_generators(
    config: PreTrainedConfig, parameters: Mapping[str, torch.Tensor], device: torch.device
) -> torch.Tensor:
    """ComRoPE-LD (arXiv 2506.03737): A_i = f_i A, one matrix for each block and a factor for each axis."""
    return parameters["factors"][..., None, None] * parameters["basis"][:, None]


def partitioned_generators(
    config: PreTrainedConfig, parameters: Mapping[str, torch.Tensor], device: torch.device
) -> torch.Tensor:
    """ComRoPE-AP (arXiv 2506.03737): every block turns with one axis, which the blocks take in turn."""
    axis_of_block = torch.arange(parameters["basis"].shape[2], device=device) % config.num_axes
    is_axis = axis_of_block == torch.arange(config.num_axes, device=device)[:, None]
    return is_axis[:, None, :, None, None] * parameters["basis"][:, None]


def circulant_generators(
    config: PreTrainedConfig, parameters: Mapping[str, torch.Tensor], device: torch.device
) -> torch.Tensor:
    """Circulant-STRING (arXiv 2502.02562): A_i = C_i - C_i^T with circulant C_i, whose first rows are learned."""
    rows = parameters["rows"]
    index = torch.arange(rows.shape[-1], device=device)
    offset = index - index[:, None]
    return rows[..., offset % len(index)] - rows[..., -offset % len(index)]


def _require_a_block_per_axis(config: PreTrainedConfig) -> None:
    blocks = config.head_dim // config.generator_block_size
    if blocks < config.num_axes:
        raise ValueError(
            f"generator_block_size is {config.generator_block_size}, which makes {blocks} blocks of head_dim "
            f"{config.head_dim}: comrope_ap needs at least one for each of {config.num_axes} axes"
        )


def _require_wide_blocks(config: PreTrainedConfig) -> None:
    if config.generator_block_size < 4:
        raise ValueError(
            f"generator_block_size is {config.generator_block_size}, allowed for string is 4 or more: a narrower "
            "circulant matrix is symmetric"
        )


def _require_a_pair_per_axis(config: PreTrainedConfig) -> None:
    if config.head_dim < 2 * config.num_axes:
        raise ValueError(
            f"head_dim is {config.head_dim}, visionllama needs at least 2 per axis, so {2 * config.num_axes} or more"
        )


FREE_GENERATORS = {"generators": ("layers", "axes", "heads", "blocks", "width", "width")}

# By their names in configurations, in the order of tables and figures. Okabe and Ito's colours, which colour-blind
# people tell apart.
POSITION_ENCODINGS: dict[str, PositionEncoding] = {
    "absolute": PositionEncoding(title="absolute", paper_name="absolute", colors={None: "#0072B2"}, has_table=True),
    "visionllama": PositionEncoding(
        title="VisionLLaMA",
        paper_name="visionllama",
        colors={None: "#D55E00"},
        generators=axial_generators,
        block_size=2,
        check=_require_a_pair_per_axis,
    ),
    "rope_mixed": PositionEncoding(
        title="RoPE-Mixed",
        paper_name="rope_mixed",
        colors={None: "#009E73"},
        generators=free_generators,
        parameters=FREE_GENERATORS,
        initial_values=free_initial_values,
        block_size=2,
    ),
    "liere": PositionEncoding(
        title="LieRE{block_size}",
        paper_name="liere{block_size}",
        colors={8: "#CC79A7", 64: "#E69F00"},
        generators=free_generators,
        parameters=FREE_GENERATORS,
        initial_values=free_initial_values,
    ),
    "none": PositionEncoding(title="no", paper_name="none"),
    "comrope_ld": PositionEncoding(
        title="ComRoPE-LD{block_size}",
        paper_name="comrope_ld{block_size}",
        generators=factored_generators,
        parameters={
            "basis": ("layers", "heads", "blocks", "width", "width"),
            "factors": ("layers", "axes", "heads", "blocks"),
        },
        initial_values=factored_initial_values,
    ),
    "comrope_ap": PositionEncoding(
        title="ComRoPE-AP{block_size}",
        paper_name="comrope_ap{block_size}",
        generators=partitioned_generators,
        parameters={"basis": ("layers", "heads", "blocks", "width", "width")},
        initial_values=partitioned_initial_values,
        check=_require_a_block_per_axis,
    ),
    "string": PositionEncoding(
        title="STRING{block_size}",
        paper_name="string{block_size}",
        generators=circulant_generators,
        parameters={"rows": ("layers", "axes", "heads", "blocks", "width")},
        initial_values=circulant_initial_values,
        check=_require_wide_blocks,
    ),
}
