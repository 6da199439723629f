"""Which numbers a field may hold: those of LiereViTConfig, as a table."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# The largest integer where there is no other bound. A sentence names it only for a value that is too large.
LARGEST_INTEGER = 2**31 - 1


@dataclass(frozen=True)
class NumberRange:
    """Finite numbers between two bounds, which are included unless they are `open_...`.

    Attributes:
        whole: integers only.
        also: further values.
    """

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False
    whole: bool = False
    also: tuple[float, ...] = ()

    def __post_init__(self):
        if self.whole and self.high == math.inf:
            object.__setattr__(self, "high", LARGEST_INTEGER)

    def allows(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            return False
        if value in self.also:
            return True
        if not math.isfinite(value):
            return False
        above = value > self.low if self.open_low else value >= self.low
        return above and (value < self.high if self.open_high else value <= self.high)

    def describe(self, value: Any) -> str:
        """What is allowed, as the end of a sentence about `value`, a number or a list of numbers."""
        values = value if isinstance(value, list | tuple) else [value]
        is_too_large = any(isinstance(each, int) and each > self.high == LARGEST_INTEGER for each in values)
        return f"{self}, at most {LARGEST_INTEGER}" if is_too_large else str(self)

    def __str__(self) -> str:
        others = "".join(f", or {value}" for value in self.also)
        if self.low == -math.inf:
            return "are finite numbers"
        if self.high in (math.inf, LARGEST_INTEGER):
            return f"is more than {self.low}{others}" if self.open_low else f"is {self.low} or more{others}"
        if not self.open_low and not self.open_high:
            return f"is {self.low} to {self.high}{others}"
        low = f"more than {self.low}" if self.open_low else f"{self.low} or more"
        return f"is {low} and {'less than' if self.open_high else 'at most'} {self.high}{others}"


_COUNT = NumberRange(1, whole=True)
_BELOW_ONE = NumberRange(0, 1, open_high=True)

# By the name of the field.
ALLOWED_NUMBERS: Mapping[str, NumberRange] = {
    "hidden_size": _COUNT,
    "num_hidden_layers": NumberRange(1, 1000, whole=True),
    "num_attention_heads": _COUNT,
    "intermediate_size": _COUNT,
    "head_dim": _COUNT,
    "hidden_dropout_prob": _BELOW_ONE,
    "attention_probs_dropout_prob": _BELOW_ONE,
    "drop_path_rate": _BELOW_ONE,
    "layer_scale_init_value": NumberRange(),
    "initializer_range": NumberRange(0),
    "layer_norm_eps": NumberRange(0),
    "image_size": _COUNT,
    "patch_size": _COUNT,
    "num_channels": _COUNT,
    "num_register_tokens": NumberRange(0, whole=True),
    "prefix_attention_bias": NumberRange(),
    "generator_init_scale": NumberRange(0),
    "generator_min_frequency": NumberRange(0, open_low=True),
    "generator_max_frequency": NumberRange(0, open_low=True),
    "pos_embed_shift": NumberRange(0),
    "pos_embed_jitter": NumberRange(1),
    "pos_embed_rescale": NumberRange(1),
    "encoder_stride": _COUNT,
    "pooler_output_size": _COUNT,
}


def require_allowed_number(field: str, value: Any) -> None:
    """Compare a value with the table; None stands for what the field does then.

    Raises:
        ValueError: the field does not allow the value. The sentence names field, value and what is allowed.
    """
    allowed = ALLOWED_NUMBERS[field]
    if value is not None and not allowed.allows(value):
        raise ValueError(f"{field} is {value!r}, allowed {allowed.describe(value)}")
