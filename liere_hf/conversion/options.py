"""What a conversion is told, where the weights do not say it."""

from dataclasses import dataclass, field
from typing import Any

from ..errors import InputError
from ..modeling.configuration_liere_vit import LiereViTConfig
from ..modeling.position_encodings import POSITION_ENCODINGS


@dataclass
class ConversionOptions:
    """Flags of `liere-hf convert`; None where the weights decide."""

    image_size: list[int] | None = field(default=None, metadata={"help": "Pixels per axis at the training size."})
    patch_size: list[int] | None = field(default=None, metadata={"help": "Pixels of a patch per axis."})
    num_channels: int = field(default=3, metadata={"help": "Input channels."})
    head_dim: int | None = field(default=None, metadata={"help": "Width of a head (authors' code: 64)."})
    position_encoding: str | None = field(
        default=None, metadata={"help": f"The position encoding: {', '.join(POSITION_ENCODINGS)}."}
    )
    pooling: str | None = field(default=None, metadata={"help": "cls (the default) or mean."})
    generator_block_size: int | None = field(
        default=None, metadata={"help": "Width of the generators' blocks: of new ones, or widened to this."}
    )
    drop_position_embeddings: bool = field(
        default=False, metadata={"help": "vit: leave the absolute table out, which changes what is computed."}
    )
    note: str | None = field(default=None, metadata={"help": "What the card says first, beside what it knows."})

    def per_axis(self, name: str, num_axes: int) -> list[int] | None:
        """A size with one value per axis; a single value stands for all."""
        values = getattr(self, name)
        if values is None or len(values) == num_axes:
            return values
        if len(values) == 1:
            return values * num_axes
        raise InputError(f"{name} is {values}, expected {num_axes} values, one per axis, or one for all")

    def build_config(self, **fields: Any) -> LiereViTConfig:
        """A configuration whose impossible values are the input's fault."""
        for name in ("image_size", "patch_size"):
            values = fields[name]
            fields[name] = values[0] if len(set(values)) == 1 and len(values) == 2 else list(values)
        try:
            return LiereViTConfig(**fields)
        except ValueError as error:
            raise InputError(str(error)) from error
