"""From transformers' ViT to LieRE: convert a trained ViT, fine-tune it as a LieRE8, compare with one from scratch.

A small ViT learns Fashion-MNIST with transformers alone. `liere-hf convert` makes it a LieRE8 that computes the same.
That is fine-tuned on scikit-learn's digits with the recipe `digits_finetune`, once with its absolute table and once
with the table fading away. The same model from scratch gets the same steps. Run it as

    python examples/fine_tune_converted_vit.py FASHION_MNIST_DIR OUTPUT_DIR

with the four idx files in FASHION_MNIST_DIR (`make fashion-mnist` puts them in .cache/fashion-mnist). The results are
in OUTPUT_DIR/results.json. It takes about five minutes on two CPU cores.
"""

import sys
from pathlib import Path

from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification, set_seed

from liere_hf import LiereViTConfig, LiereViTForImageClassification
from liere_hf.configuration import DataArguments, parse_recipe
from liere_hf.conversion import ConversionOptions, convert
from liere_hf.report import hardware, with_interval, write_json
from liere_hf.training.data import load_data
from liere_hf.training.run import train
from liere_hf.training.transforms import TransformedImages, build_image_processor

VIT_STEPS = 500
ANNEALING_STEPS = 75


def train_vit(data_dir: str, directory: Path) -> None:
    """A ViT of 0.5 M parameters on Fashion-MNIST, by transformers' own classes."""
    set_seed(0)
    arguments = DataArguments(dataset="fashion_mnist", data_dir=data_dir)
    data = load_data(arguments, seed=0)
    processor = build_image_processor(LiereViTConfig(image_size=28, patch_size=4), arguments)
    config = ViTConfig(
        hidden_size=128, num_hidden_layers=4, num_attention_heads=2, intermediate_size=256,
        image_size=28, patch_size=4, initializer_range=0.05, id2label=dict(enumerate(data.label_names)),
    )  # fmt: skip
    training_arguments = TrainingArguments(
        str(directory / "training"), max_steps=VIT_STEPS, per_device_train_batch_size=128, learning_rate=1e-3,
        lr_scheduler_type="cosine", warmup_steps=50, report_to="none", save_strategy="no", use_cpu=True,
        dataloader_pin_memory=False,
    )  # fmt: skip
    model = ViTForImageClassification(config)
    Trainer(model, training_arguments, train_dataset=TransformedImages(data.train, processor)).train()
    model.save_pretrained(directory)
    processor.save_pretrained(directory)


def fine_tune(checkpoint: Path, output_dir: Path, *flags: str) -> dict[str, float]:
    """The recipe `digits_finetune` from a checkpoint; its accuracy and interval."""
    flags = ("--model_name_or_path", str(checkpoint), "--output_dir", str(output_dir), "--use_cpu", "true", *flags)
    metrics = train(*parse_recipe("digits_finetune", flags))
    return {name.removeprefix("eval_"): metrics[name] for name in metrics if name.startswith("eval_accuracy")}


def main(data_dir: str, output_dir: Path) -> None:
    """Run all of it and write the results."""
    train_vit(data_dir, output_dir / "vit")
    converted = output_dir / "liere8"
    convert(str(output_dir / "vit"), converted, "vit", ConversionOptions(generator_block_size=8))

    # From scratch: the architecture of the converted model without the table, every weight new.
    scratch = output_dir / "scratch"
    set_seed(0)
    config = LiereViTConfig.from_pretrained(converted, use_absolute_position_embeddings=False)
    LiereViTForImageClassification(config).save_pretrained(scratch)
    build_image_processor(config, DataArguments()).save_pretrained(scratch)

    results = {
        "converted": fine_tune(converted, output_dir / "converted_tuned"),
        "converted, table annealed": fine_tune(
            converted, output_dir / "annealed_tuned", "--anneal_position_embeddings_steps", str(ANNEALING_STEPS)
        ),
        "from scratch": fine_tune(scratch, output_dir / "scratch_tuned"),
    }
    for name, row in results.items():
        print(f"{name:<26} {with_interval(row, 'accuracy')} %")
    write_json(output_dir / "results.json", {"digits": results, "vit_steps": VIT_STEPS, "hardware": hardware()})


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
