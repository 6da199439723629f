"""Step 1: where examples come from, one module for each kind of data set, and how they are split."""

import importlib
from dataclasses import replace
from pathlib import Path

from ...configuration import DATASETS, DataArguments
from ...configuration.metric_names import SINGLE_LABEL
from ...errors import InputError
from ...modeling.configuration_liere_vit import LiereViTConfig
from ..media import require_taken
from .evaluation_rows import EvaluationRows, rows_for_evaluation, with_classes
from .splits import HeldOut, Splits, hold_out, random_subset, require_trainable, select_subsets

# Options of the data sets of `own_data` only.
OWN_OPTIONS = (
    "train_file",
    "validation_file",
    "test_file",
    "image_column_name",
    "label_column_name",
    "problem_type",
    "group_column",
    "group_pattern",
)


def load_splits(arguments: DataArguments, seed: int, config: LiereViTConfig | None = None) -> Splits:
    """Load the data set that the arguments name, to train on it.

    Without a validation split, `eval_fraction` of each class is held out for it, unless the test split takes its place
    in published results.

    Args:
        seed: of the held-out part and of subsets.
        config: of the model, whose inputs the examples must suit.

    Raises:
        InputError: no data set named, files that are missing or cannot be read, a model for other inputs, or examples
            that no classifier can be trained on.
    """
    splits = _load(arguments, config)
    require_trainable(splits)
    if splits.validation is None and (splits.test is None or splits.is_own):
        groups = {"group_column": arguments.group_column, "group_pattern": arguments.group_pattern}
        splits = hold_out(splits, arguments.eval_fraction, seed, **groups)
    return select_subsets(splits, arguments, seed)


def load_evaluation(
    arguments: DataArguments, seed: int, config: LiereViTConfig, held_out: HeldOut | None = None
) -> EvaluationRows:
    """Load the examples of a data set that a model is evaluated on, none of which it was trained on.

    These are the test split, else the validation split, else those that were held out from training. Of a data set
    without splits that the model was not trained on, they are all.

    Args:
        seed: of subsets.
        config: of the model; its classes are those of the labels.
        held_out: how the model's validation examples were chosen, if they were held out.

    Raises:
        InputError: as in `load_splits`, or a class that the model does not have.
    """
    if held_out is not None:
        arguments = replace(arguments, group_column=held_out.group_column, group_pattern=held_out.group_pattern)
    rows = rows_for_evaluation(_load(arguments, config), held_out)
    table = with_classes(rows.table, [config.id2label[index] for index in range(config.num_labels)])
    return rows._replace(table=random_subset(table, "eval_examples", arguments.eval_examples, seed))


def _load(arguments: DataArguments, config: LiereViTConfig | None) -> Splits:
    name = arguments.dataset
    if name is None:
        raise InputError(f"dataset is not given, allowed are {', '.join(DATASETS)}")
    if config is not None:
        # Before files are checked, as videos of other models would seem too short.
        require_taken(DATASETS[name].media, config)
    _require_taken_options(name, arguments)
    # Imported when its data set is named: training on images then needs neither PyAV nor scikit-learn.
    module = importlib.import_module(f"{__name__}.{DATASETS[name].module}")
    listed = arguments.train_file or arguments.validation_file or arguments.test_file
    path = listed or arguments.data_dir
    source = str(Path(path).resolve()) if path else arguments.hub_id or name
    return getattr(module, f"load_{name}")(arguments, config)._replace(source=source)


def _require_taken_options(name: str, arguments: DataArguments) -> None:
    """
    Raises:
        InputError: an option that would have no effect on this data set.
    """

    def first_given(options: tuple[str, ...]) -> str | None:
        return next((option for option in options if getattr(arguments, option) not in (None, SINGLE_LABEL)), None)

    if DATASETS[name].is_built_in and (given := first_given(("data_dir", "hub_id"))):
        raise InputError(f"{given} is given, which {name} does not take: it needs no files")
    if DATASETS[name].module != "own_data" and (given := first_given(OWN_OPTIONS)):
        own = ", ".join(name for name, data_set in DATASETS.items() if data_set.module == "own_data")
        raise InputError(f"{given} is given, which {name} does not take: allowed with it are the data sets {own}")
