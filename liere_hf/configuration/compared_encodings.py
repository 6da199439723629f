"""The position encodings that experiments, benchmark and demo compare."""

from dataclasses import dataclass
from typing import Any

from ..modeling.position_encodings import POSITION_ENCODINGS, PositionEncoding


@dataclass(frozen=True)
class ComparedEncoding:
    """An entry of `POSITION_ENCODINGS` at one of the block sizes for which it has a color.

    Attributes:
        name: the entry's, in configurations.
        title, paper_name: the entry's, with the block size.
        options: the fields of LiereViTConfig that choose it.
    """

    name: str
    encoding: PositionEncoding
    title: str
    paper_name: str
    color: str
    options: dict[str, Any]


def compared_encodings() -> dict[str, ComparedEncoding]:
    """By title, in the order of the registry, which is read at every call."""
    compared = [
        ComparedEncoding(
            name,
            encoding,
            title=encoding.title.format(block_size=block_size),
            paper_name=encoding.paper_name.format(block_size=block_size),
            color=color,
            options=encoding_options(name, block_size),
        )
        for name, encoding in POSITION_ENCODINGS.items()
        for block_size, color in encoding.colors.items()
    ]
    return {each.title: each for each in compared}


def encoding_options(name: str, block_size: int | None = None) -> dict[str, Any]:
    """The fields of LiereViTConfig that choose an encoding, at a block size where it has several."""
    return {"position_encoding": name} | ({} if block_size is None else {"generator_block_size": block_size})
