"""Models behind the page: answers with maps, and scores by offset, at every size, layer and head."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..configuration import DataArguments, ModelArguments
from ..configuration.prediction_options import PredictionOptions
from ..data.data_sets.arrows import ArrowsTask, arrows_task
from ..errors import InputError
from ..explanation import Explanation, explain_file
from ..model_loading import load_checkpoint
from ..plots import Plot, plot_offset_scores, plot_table_scores
from ..plots.rotations import has_rotations, has_table
from ..prediction import Predictor, build_predictor, trained_recipe
from .limits import require_moderate

# Answers of the page.
TOP_K = 5
# Sizes go up to this multiple of the training size, while the attention of a single input takes less than this.
MAX_SIZE_FACTOR, MAX_ATTENTION_BYTES = 2, 2**30
# Committed checkpoints of a clone, as the page lists them by default: the first two side by side.
CHECKPOINTS = Path("checkpoints")
DEFAULT_MODELS = (
    "liere-spatial-9x9",
    "absolute-spatial-9x9",
    "rope-mixed-spatial-9x9",
    "liere-fashion-mnist",
    "rope-mixed-fashion-mnist",
    "liere-clips",
    "rope-mixed-clips",
)


class ShownModel:
    """A classifier that several visitors use at once: nothing in it changes but what it keeps.

    Args:
        name: directory or Hub id.
        use_cpu: also where there is a GPU.

    Attributes:
        title: what the page calls it: of a directory, only its last part.
        column: of the inputs, `image`, `video` or `volume`.
        task: the spatial task that the model was trained on, None if it was not.

    Raises:
        InputError: the model cannot be read.
    """

    def __init__(self, name: str, use_cpu: bool = False):
        self.name, self.title = name, Path(name).resolve().name if Path(name).is_dir() else name
        # Others would be switched to eager attention, for all visitors, while maps are computed.
        model = load_checkpoint(ModelArguments(model_name_or_path=name, attn_implementation="eager"))
        self.model = model.to("cuda" if torch.cuda.is_available() and not use_cpu else "cpu").requires_grad_(False)
        self._predictors = {self.training_width: build_predictor(self.model, name, PredictionOptions())}
        self.column = self._predictors[self.training_width].column
        self.task = _task(trained_recipe(name))

    @property
    def gives_shares(self) -> bool:
        """Whether answers are probabilities."""
        return self._predictors[self.training_width].gives_shares

    @property
    def num_layers(self) -> int:
        return self.model.config.num_hidden_layers

    @property
    def num_heads(self) -> int:
        return self.model.config.num_attention_heads

    @property
    def patch_width(self) -> int:
        return self.model.config.spatial_patch_size[-1]

    @property
    def training_width(self) -> int:
        return self.model.config.spatial_image_size[-1]

    @property
    def max_width(self) -> int:
        """The largest width of inputs that the page allows; the smallest is one patch."""
        config = self.model.config
        width = self.training_width
        while width + self.patch_width <= MAX_SIZE_FACTOR * self.training_width:
            num_patches = torch.Size(config.grid_of(self.input_size(width + self.patch_width))).numel()
            tokens = num_patches + config.num_prefix_tokens
            # Attention and its gradient in every layer and head, in float32.
            if 2 * 4 * tokens**2 * self.num_heads * self.num_layers > MAX_ATTENTION_BYTES:
                break
            width += self.patch_width
        return width

    def input_size(self, width: int) -> list[int]:
        """Pixels per axis in the proportions of the training size, as patches allow; clips keep their length."""
        config = self.model.config
        size = [
            max(round(pixels * width / self.training_width / patch), 1) * patch
            for pixels, patch in zip(config.spatial_image_size, config.spatial_patch_size, strict=True)
        ]
        return [config.spatial_image_size[0], *size[1:]] if self.column == "video" else size

    def explain(self, file: dict[str, Any], title: str, width: int, layer: int) -> Explanation:
        """Answers for a file, and maps after a layer, counted from 1.

        Args:
            file: `bytes`, or None and the `path`.
            title: what the file is called.

        Raises:
            InputError: it cannot be read or is too large, or there is no such width or layer.
        """
        self._require_layer(layer)
        predictor = self._predictor(width)
        try:
            require_moderate(file, self.column, self.model.config.spatial_image_size[0])
            return explain_file(predictor, file, title, TOP_K, [layer])
        except InputError as error:
            # A file has the name that its visitor gave it, not its place on this machine.
            raise InputError(str(error).replace(file["path"] or title, title)) from error

    def offsets(self, width: int, layer: int, head: int) -> Plot:
        """Scores by offset of a head, both counted from 1; of a table of positions, similarities.

        Raises:
            InputError: a model without positions, or no such width, layer or head.
        """
        self._require_width(width)
        size = self.input_size(width)
        if has_rotations(self.model):
            return plot_offset_scores(self.model, [layer], [head], size)
        if has_table(self.model):
            return plot_table_scores(self.model, size)
        raise InputError(f"{self.title} has no position encoding: all places are alike")

    def _predictor(self, width: int) -> Predictor:
        self._require_width(width)
        if width not in self._predictors:
            options = PredictionOptions(input_size=self.input_size(width))
            self._predictors[width] = build_predictor(self.model, self.name, options)
        return self._predictors[width]

    def _require_width(self, width: int) -> None:
        if not self.patch_width <= width <= self.max_width or width % self.patch_width:
            raise InputError(
                f"size is {width}, allowed are multiples of {self.patch_width} from {self.patch_width} to "
                f"{self.max_width}"
            )

    def _require_layer(self, layer: int) -> None:
        if not 1 <= layer <= self.num_layers:
            raise InputError(f"layer is {layer}, allowed are 1 to {self.num_layers}")


def load_models(names: Sequence[str], use_cpu: bool = False) -> dict[str, ShownModel]:
    """Models by title; two of one title are numbered.

    Args:
        names: directories or Hub ids; by default `DEFAULT_MODELS` of the clone that this is run in.

    Raises:
        InputError: a model cannot be read, or none is given outside of a clone.
    """
    names = list(names) or [str(CHECKPOINTS / name) for name in DEFAULT_MODELS if (CHECKPOINTS / name).is_dir()]
    if not names:
        raise InputError(
            f"no model is given, and {CHECKPOINTS.absolute()} has none: name a directory or a Hub id, or run this in "
            "a clone of the repository"
        )
    models: dict[str, ShownModel] = {}
    for model in (ShownModel(name, use_cpu) for name in names):
        same = sum(other.name == model.name or other.title == model.title for other in models.values())
        models[f"{model.title} ({same + 1})" if same else model.title] = model
    return models


def _task(recipe: dict[str, Any]) -> ArrowsTask | None:
    if recipe.get("dataset") != "arrows":
        return None
    return arrows_task(DataArguments(**{name: recipe[name] for name in recipe if name.startswith("arrows_")}))
