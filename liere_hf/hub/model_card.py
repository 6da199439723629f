"""The model card of a finished training run: every number in it is read from the files of the run."""

import json
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..report import with_interval

# Name and, where there is one, Hub id of each data set.
DATASETS = {
    "arrows": ("Arrows (spatial reasoning, generated)", None),
    "cifar10": ("CIFAR-10", "uoft-cs/cifar10"),
    "cifar100": ("CIFAR-100", "uoft-cs/cifar100"),
    "fashion_mnist": ("Fashion-MNIST", "zalando-datasets/fashion_mnist"),
    "digits": ("scikit-learn digits", None),
    "imagefolder": ("Image folder", None),
    "imagenet": ("ImageNet-1k", "ILSVRC/imagenet-1k"),
    "ucf101": ("UCF101", None),
    "volumes": ("Volumes in folders", None),
}
ENCODING_NAMES = {
    "rope_mixed": "RoPE-Mixed",
    "visionllama": "VisionLLaMA",
    "absolute": "absolute positions",
    "none": "no positions",
}
CITATION = """\
@inproceedings{ostmeier2025liere,
  title     = {LieRE: Lie Rotational Positional Encodings},
  author    = {Ostmeier, Sophie and Axelrod, Brian and Varma, Maya and Moseley, Michael and Chaudhari, Akshay S. and
               Langlotz, Curtis},
  booktitle = {International Conference on Machine Learning},
  year      = {2025},
  note      = {arXiv:2406.10322}
}"""

TEMPLATE = """\
---
{{ card_data }}
---

# {{ title }}

A vision transformer of {{ "{:,}".format(num_parameters) }} parameters with {{ encoding }} position encoding
([LieRE](https://arxiv.org/abs/2406.10322)), trained on {{ dataset_name }} with liere_hf.

| metric | value (95% interval) |
|---|---|
| top-1 accuracy, % | {{ accuracy }} |
| top-5 accuracy, % | {{ top5_accuracy }} |
| cross-entropy | {{ loss }} |

Measured on the evaluation split at {{ image_size }} pixels, once, on the last weights. {{ examples }} examples were
seen in training ({{ epochs }} epochs); it took {{ minutes }} minutes on {{ device }}.

## Use

With `pip install liere_hf`:

```python
import liere_hf
from transformers import pipeline

classify = pipeline("{{ task }}", model="PATH_OR_HUB_ID")
```

Without it, by the code that comes with the weights: `pipeline(..., trust_remote_code=True)`.

## Training

`liere-hf train` with the options in [recipe.yaml](recipe.yaml); the main ones:

```yaml
{{ options }}
```

Versions: Python {{ python }}, torch {{ torch }}, transformers {{ transformers }}, liere_hf {{ liere_hf }}.

## Intended use and limits

Research on position encodings. It has learned the classes of its training data and nothing else, was not checked for
bias, and should decide nothing about people.

## Citation

```bibtex
{{ citation }}
```
"""

MAIN_OPTIONS = (
    "dataset", "image_size", "patch_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
    "intermediate_size", "position_encoding", "generator_block_size", "pooling", "num_train_epochs",
    "per_device_train_batch_size", "learning_rate", "lr_scheduler_type", "weight_decay", "random_crop_padding",
    "horizontal_flip", "seed",
)  # fmt: skip


def encoding_name(config: dict[str, Any]) -> str:
    """The paper's name of a model's position encoding: LieRE8 for LieRE with blocks of 8."""
    encoding = config["position_encoding"]
    return f"LieRE{config['generator_block_size']}" if encoding == "liere" else ENCODING_NAMES[encoding]


def build_model_card(run_dir: Path) -> ModelCard:
    """The card of the run in `run_dir`, from its config, recipe and results files."""
    config, evaluation, training = (
        json.loads((run_dir / name).read_text()) for name in ("config.json", "eval_results.json", "train_results.json")
    )
    recipe = yaml.safe_load((run_dir / "recipe.yaml").read_text())
    metrics = {name.removeprefix("eval_"): value for name, value in evaluation.items()}
    encoding, (dataset_name, hub_id) = encoding_name(config), DATASETS[recipe["dataset"]]
    task = "video-classification" if recipe["dataset"] in ("ucf101", "volumes") else "image-classification"
    title = f"{encoding} on {dataset_name}"
    results = [
        EvalResult(
            task_type=task,
            dataset_type=recipe["dataset"],
            dataset_name=dataset_name,
            dataset_split="test",
            metric_type=metric_type,
            metric_name=name,
            metric_value=round(metrics[key], 6),
            metric_args={"confidence_interval_95": [round(metrics[f"{key}_{end}"], 6) for end in ("low", "high")]},
        )
        for key, metric_type, name in (
            ("accuracy", "accuracy", "Top-1 accuracy"),
            ("top5_accuracy", "top_5_accuracy", "Top-5 accuracy"),
            ("loss", "loss", "Cross-entropy"),
        )
    ]
    data = ModelCardData(
        license="mit",
        library_name="transformers",
        pipeline_tag=task,
        tags=["liere_vit", "liere", "position-encoding", "vision"],
        datasets=[hub_id] if hub_id else None,
        model_name=title,
        eval_results=results,
    )
    return ModelCard.from_template(
        data,
        template_str=TEMPLATE,
        title=title,
        encoding=encoding,
        task=task,
        dataset_name=dataset_name,
        num_parameters=training["num_parameters"],
        accuracy=with_interval(metrics, "accuracy"),
        top5_accuracy=with_interval(metrics, "top5_accuracy"),
        loss=with_interval(metrics, "loss", percent=False),
        image_size=config["image_size"],
        examples=f"{round(training['train_runtime'] * training['train_samples_per_second']):,}",
        epochs=round(training["epoch"], 2),
        minutes=round(training["train_runtime"] / 60, 1),
        options=yaml.safe_dump(
            {name: recipe[name] for name in MAIN_OPTIONS if name in recipe}, sort_keys=False
        ).strip(),
        citation=CITATION,
        **training["hardware"],
    )
