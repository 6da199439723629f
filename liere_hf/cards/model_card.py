"""Model cards of finished runs and of converted models: every number in them is read from files."""

from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..comparison_files import Comparison, read_comparisons, titles
from ..configuration import DATASETS, paper_accuracy
from ..configuration.metric_names import ENDS, MEASURES, MEASURES_OF, NUM_TOP_CLASSES, problem_type
from ..metric_display import class_rows, interval_text, measure_rows, with_interval
from ..modeling.position_encodings import POSITION_ENCODINGS
from ..run_directory import (
    Checkpoint,
    Conversion,
    Run,
    encoding_title,
    pixels_per_axis,
    train_examples_seen,
    train_seconds,
)

_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"), undefined=StrictUndefined, keep_trailing_newline=True
)
TAGS = ["liere_vit", "liere", "position-encoding", "vision"]
_AUTO_CLASSES = {
    "ForImageClassification": "AutoModelForImageClassification",
    "ForVideoClassification": "AutoModelForVideoClassification",
    "Model": "AutoModel",
}
_TASKS = {
    "AutoModelForImageClassification": "image-classification",
    "AutoModelForVideoClassification": "video-classification",
    "AutoModel": "image-feature-extraction",
}


def build_model_card(checkpoint: Run | Conversion, repo_id: str | None = None) -> ModelCard:
    """The card of a checkpoint.

    Args:
        repo_id: `ORG/NAME` where it is published; without it, the snippets load the directory.
    """
    repo_id = repo_id or checkpoint.directory.name
    build = _run_card if isinstance(checkpoint, Run) else _conversion_card
    data, template, values = build(checkpoint)
    text = _TEMPLATES.get_template(template).render(
        repo_id=repo_id,
        name=repo_id.rpartition("/")[2],
        title=data.model_name,
        encoding=encoding_title(checkpoint.config),
        config=checkpoint.config,
        patch_size=pixels_per_axis(checkpoint.config, "patch_size"),
        **_inputs(checkpoint),
        **values,
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text.strip()}\n")


def progress_card(config: dict[str, Any], step: int, num_steps: int) -> ModelCard:
    """The card of a checkpoint that is published during training, without results."""
    data = ModelCardData(library_name="transformers", pipeline_tag=task_of(config), tags=TAGS)
    text = f"{_model_title(config)}, in training: after step {step:,} of {num_steps:,}. Results come at the end."
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}\n")


def auto_class(config: dict[str, Any]) -> str:
    """Name of the Auto class that loads a checkpoint with this config.json."""
    (architecture,) = config["architectures"]
    return next(name for ending, name in _AUTO_CLASSES.items() if architecture.endswith(ending))


def task_of(config: dict[str, Any]) -> str:
    """The Hub's name of the task of a checkpoint, its `pipeline_tag`."""
    return _TASKS[auto_class(config)]


def _model_title(config: dict[str, Any]) -> str:
    return f"ViT with {encoding_title(config)} position encoding"


def _run_card(run: Run) -> tuple[ModelCardData, str, dict[str, Any]]:
    dataset, recipe, training = DATASETS[run.recipe["dataset"]], run.published_recipe, run.training
    title = f"{_model_title(run.config)} on {dataset.title}"
    final = run.test_metrics or run.metrics
    source = recipe.get("model_name_or_path")
    data = ModelCardData(
        license="mit",
        library_name="transformers",
        pipeline_tag=dataset.task,
        tags=TAGS,
        datasets=[dataset.hub_id] if dataset.hub_id else None,
        base_model=source if source and "/" in source else None,
        model_name=title,
        eval_results=[
            result
            for metrics, split, size in [
                (final, _final_split(run), None),
                *((row, row.get("split", "test"), _per_axis_text(row["input_size"])) for row in run.other_sizes),
            ]
            for result in _eval_results(_shown(metrics, run.config), run.recipe["dataset"], split, size)
        ],
    )
    main = MEASURES_OF[problem_type(run.config)][0]
    class_header, class_table = class_rows(final.get("per_class", {}))
    values = {
        "measures": measure_rows(_shown(final, run.config)),
        "evaluated_split": _final_split(run),
        "validation_value": with_interval(run.metrics, main, MEASURES[main].is_share) if run.test_metrics else None,
        "class_header": class_header,
        "class_rows": [_cells(row) for row in class_table],
        "main_measure": measure_rows({main: final[main]})[0][0],
        "evaluated_size": _per_axis_text(run.input_size),
        "has_best_weights": recipe.get("load_best_model_at_end", False),
        "paper": _paper_accuracy(run),
        "start": f"fine-tuned from {source}" if source else "trained from scratch",
        "dataset_title": dataset.title,
        "other_sizes": [
            {"size": _per_axis_text(row["input_size"]), "main": with_interval(row, main, MEASURES[main].is_share)}
            for row in run.other_sizes
        ],
        "train_input_sizes": sorted({*(recipe.get("train_input_sizes") or ())}),
        "compared": [row for comparison in read_comparisons(run) for row in _compared_rows(comparison, main)],
        "num_parameters": training["num_parameters"],
        "num_processes": training["num_processes"],
        "examples": f"{round(train_examples_seen(training)):,}",
        "epochs": round(training["epoch"], 2),
        "minutes": round(train_seconds(training) / 60, 1),
        "needs_files": dataset.needs_files,
        "needs_model": run.starts_from_directory,
        "recipe": yaml.safe_dump(recipe, sort_keys=False).strip(),
    }
    return data, "run.md", values | training["hardware"]


def _compared_rows(comparison: Comparison, measure: str) -> list[list[str]]:
    """A row for each model that the first one is compared with."""
    about = MEASURES[measure]
    scale, digits = (100, 2) if about.is_share else (1, 4)
    differences = {
        each.model: interval_text(*(scale * number for number in (each.value, each.low, each.high)), digits=digits)
        for each in comparison.differences
        if each.measure == measure
    }
    rows = [
        [
            _per_axis_text(metrics["input_size"]),
            f"{metrics['examples']:,}",
            title,
            comparison.encodings[name],
            with_interval(metrics, measure, about.is_share),
            differences.get(name, ""),
        ]
        for (name, metrics), title in zip(comparison.metrics.items(), titles([*comparison.metrics]), strict=True)
    ]
    return [_cells(row) for row in rows[1:]]


def _cells(texts: list[str]) -> list[str]:
    """Texts as cells of a table in Markdown."""
    return [" ".join(text.replace("|", "\\|").split()) for text in texts]


def _conversion_card(conversion: Conversion) -> tuple[ModelCardData, str, dict[str, Any]]:
    record, base_model = conversion.record, conversion.record["base_model"]
    is_authors = record["from"] == "liere"
    data = ModelCardData(
        # The authors' code and weights are under the MIT license.
        license="mit" if is_authors else "other",
        license_name=None if is_authors else "license-of-the-source",
        library_name="transformers",
        pipeline_tag=task_of(conversion.config),
        tags=TAGS,
        base_model=base_model,
        model_name=f"{_model_title(conversion.config)}, converted from {record['source']}",
    )
    promise = "It computes what the source computes." if record["is_exact"] else "It differs from it as asked for."
    flags = "".join(f" --{name} {' '.join(map(str, value))}" for name, value in record["options"].items())
    command = f"liere-hf convert {record['source']} OUTPUT_DIR --from {record['from']}{flags}"
    return data, "conversion.md", {"record": record, "promise": promise, "command": command}


def _inputs(checkpoint: Checkpoint) -> dict[str, Any]:
    """The input of the snippets: an image for a pipeline, a video, or `pixel_values`; and the sizes of their axes."""
    config, size = checkpoint.config, pixels_per_axis(checkpoint.config, "image_size")
    name = auto_class(config)
    frames = [("frames", size[0])] if len(size) == 3 else []
    space = [*zip(("height", "width")[: len(size)], size[-2:], strict=True)]
    axes = [("batch", 1), *frames, ("channels", config["num_channels"]), *space]
    return {
        "auto_class": name,
        "input": _kind_of_input(checkpoint, name),
        "size": size,
        "axes": [axis for axis, _ in axes],
        "shape": [extent for _, extent in axes],
    }


def _kind_of_input(checkpoint: Checkpoint, auto: str) -> str:
    """What the snippets start from. Without the processor of a picture or video, and for volumes, `pixel_values`."""
    processors = {path.name for path in checkpoint.directory.glob("*preprocessor_config.json")}
    if auto == "AutoModelForImageClassification" and "preprocessor_config.json" in processors:
        return "image"
    # Three axes and channels are a video's, unless the model was trained on volumes.
    is_of_volumes = isinstance(checkpoint, Run) and checkpoint.recipe["dataset"] == "volumes"
    if auto != "AutoModelForVideoClassification" or checkpoint.config["num_channels"] != 3 or is_of_volumes:
        return "pixel_values"
    return "video" if "video_preprocessor_config.json" in processors else "pixel_values"


def _final_split(run: Run) -> str:
    """The split of the results in a card: test where there is one."""
    has_test = run.test_metrics or "validation" not in run.training.get("data", {}).get("splits", {})
    return "test" if has_test else "validation"


def _eval_results(metrics: dict[str, float], name: str, split: str, size: str | None) -> list[EvalResult]:
    dataset = DATASETS[name]
    return [
        EvalResult(
            task_type=dataset.task,
            dataset_type=dataset.hub_id or name,
            dataset_name=dataset.title,
            dataset_split=split,
            dataset_config=f"{size} pixels" if size else None,
            metric_type=measure.hub_type,
            metric_name=measure.title[0].upper() + measure.title[1:],
            metric_value=round(metrics[key], 6),
            metric_args={"confidence_interval_95": [round(metrics[key + end], 6) for end in ENDS]}
            if key + ENDS[0] in metrics
            else None,
        )
        for key, measure in MEASURES.items()
        if key in metrics
    ]


def _shown(metrics: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """The metrics; results of older versions have a top-5 accuracy of 1 where there are no more classes."""
    hidden = () if len(config["id2label"]) > NUM_TOP_CLASSES else ("top5_accuracy",)
    return {name: value for name, value in metrics.items() if name not in hidden}


def _paper_accuracy(run: Run) -> float | None:
    setting, encoding = run.recipe["dataset"], POSITION_ENCODINGS[run.config["position_encoding"]]
    if setting == "arrows":
        setting = f"arrows_{run.recipe['arrows_grid_size'] * run.recipe['arrows_cell_size']}"
    return paper_accuracy(setting, encoding.paper_name.format(block_size=run.config["generator_block_size"]))


def _per_axis_text(size: list[int]) -> str:
    return " x ".join(map(str, size))
