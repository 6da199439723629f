import pytest
import torch
from transformers import Trainer, TrainingArguments

from liere_hf import LiereViTConfig, LiereViTForImageClassification
from liere_hf.errors import InputError
from liere_hf.training.annealing import PositionTableAnnealing


def small_model(**overrides):
    settings = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "image_size": 8,
        "patch_size": 4,
        "use_absolute_position_embeddings": True,
    }
    return LiereViTForImageClassification(LiereViTConfig(**{**settings, **overrides}))


def train(model, directory, steps, learning_rate):
    """Train with a table that fades over four steps. Returns its norms before each step and at the end."""
    table = model.liere_vit.embeddings.position_embeddings
    norms = []
    model.register_forward_pre_hook(lambda *_: norms.append(table.norm().item()))
    images = [{"pixel_values": torch.randn(3, 8, 8), "labels": index % 2} for index in range(8)]
    arguments = TrainingArguments(
        directory, max_steps=steps, per_device_train_batch_size=4, learning_rate=learning_rate, report_to="none",
        save_strategy="no", disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    Trainer(model, arguments, train_dataset=images, callbacks=[PositionTableAnnealing(model, 4)]).train()
    return [*norms, table.norm().item()]


def test_the_table_fades_linearly(tmp_path):
    model = small_model()
    start = model.liere_vit.embeddings.position_embeddings.norm().item()
    norms = train(model, tmp_path, steps=6, learning_rate=0.0)
    assert norms == pytest.approx([start * share for share in (0.75, 0.5, 0.25, 0, 0, 0, 0)], rel=1e-5)


def test_training_does_not_restore_the_table(tmp_path):
    model = small_model()
    classifier = model.classifier.weight.detach().clone()
    norms = train(model, tmp_path, steps=6, learning_rate=1e-2)
    assert norms[-3:] == [0, 0, 0]
    assert not model.classifier.weight.equal(classifier)


@pytest.mark.parametrize("overrides", [{"use_absolute_position_embeddings": False}, {"position_encoding": "absolute"}])
def test_models_without_a_table_to_lose(overrides):
    with pytest.raises(InputError, match="has no absolute position embeddings in addition to a rotary"):
        PositionTableAnnealing(small_model(**overrides), 4)
