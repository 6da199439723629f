"""Options of predictions."""

from dataclasses import dataclass, field, fields
from typing import Any

from .allowed_values import require_allowed
from .arguments import DataArguments


@dataclass
class PredictionOptions:
    """Flags of `liere-hf predict`. Those of the inputs are, by default, as in the recipe of the model."""

    top_k: int = field(default=5, metadata={"help": "Number of classes for each file, the most probable first."})
    batch_size: int = field(default=32, metadata={"help": "Number of views that the model takes at once."})
    num_workers: int | None = field(
        default=None,
        metadata={"help": "Number of processes that read files (default: all cores but one, none for few files)."},
    )
    use_cpu: bool = field(default=False, metadata={"help": "Do not use a GPU."})
    input_size: list[int] | None = field(
        default=None, metadata={"help": "Input size in pixels per axis (default: as in training)."}
    )
    frame_stride: int | None = field(default=None, metadata={"help": "Video: distance between sampled frames."})
    eval_segments: int | None = field(default=None, metadata={"help": "Video: number of clips per video."})
    eval_crops: int | None = field(default=None, metadata={"help": "Video: number of crops per clip, 1 or 3."})
    intensity_window: list[float] | None = field(
        default=None, metadata={"help": "Intensities mapped to black and white, where they are not 8 bits."}
    )

    def __post_init__(self):
        require_allowed(vars(self))

    def data_arguments(self, recipe: dict[str, Any]) -> DataArguments:
        """How inputs are read: as given here, else as in the recipe of the model, else by default."""
        names = {each.name for each in fields(self)} & {each.name for each in fields(DataArguments)}
        given = {name: value for name, value in vars(self).items() if name in names and value is not None}
        trained = {name: recipe[name] for name in (*names, "volume_spacing") if name in recipe}
        return DataArguments(**trained | given)
