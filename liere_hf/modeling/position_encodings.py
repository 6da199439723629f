"""The position encodings: one entry each, which configuration, model, conversion, experiments and cards read.

Every rotary encoding is exp(sum_i p_i A_i) with block-diagonal skew-symmetric A_i (LieRE, equation 3). What makes it
an encoding of its own is where the generators A_i come from. A generator is a raw (b, b) matrix whose strict upper
triangle U gives A = U - U^T.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from transformers.configuration_utils import PreTrainedConfig

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
        block_size: the width b of its blocks, None if `config.generator_block_size` decides.
        has_table: whether a learned table of absolute positions is added to the patches.
        check: raises a ValueError for a configuration that the encoding does not allow.
    """

    title: str
    paper_name: str
    colors: Mapping[int | None, str] = field(default_factory=dict)
    generators: Generators | None = None
    parameters: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
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
    def has_free_generators(self) -> bool:
        """Whether the learned parameters are the generators themselves, so that they can take any value."""
        return self.generators is free_generators

    def parameter_shapes(self, config: PreTrainedConfig) -> dict[str, tuple[int, ...]]:
        """Shapes of the learned tensors that the generators are computed from."""
        sizes = {
            "layers": 1 if config.share_generators_across_layers else config.num_hidden_layers,
            "axes": config.num_axes,
            "heads": 1 if config.share_generators_across_heads else config.num_attention_heads,
            "blocks": config.head_dim // config.generator_block_size,
            "width": config.generator_block_size,
        }
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
        block_size=2,
    ),
    "liere": PositionEncoding(
        title="LieRE{block_size}",
        paper_name="liere{block_size}",
        colors={8: "#CC79A7", 64: "#E69F00"},
        generators=free_generators,
        parameters=FREE_GENERATORS,
    ),
    "none": PositionEncoding(title="no", paper_name="none"),
}
