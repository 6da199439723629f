"""Parameters of rotations: not decayed, and with a learning rate of their own."""

import pytest
import torch
from torch.utils.data import Dataset, default_collate

from liere_hf import LiereViTConfig, LiereViTForImageClassification
from liere_hf.configuration import RunArguments
from liere_hf.errors import InputError
from liere_hf.modeling.position_encodings import POSITION_ENCODINGS
from liere_hf.training.trainer import LiereTrainer

LEARNED = [name for name, encoding in POSITION_ENCODINGS.items() if encoding.parameters]


class Images(Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict:
        generator = torch.Generator().manual_seed(index)
        return {"pixel_values": torch.randn(3, 8, 8, generator=generator), "labels": index % 2}


def build_trainer(directory, encoding, **options) -> LiereTrainer:
    torch.manual_seed(0)
    config = LiereViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=1,
        intermediate_size=16,
        image_size=8,
        patch_size=4,
        num_labels=2,
        position_encoding=encoding,
    )
    defaults = {
        "per_device_train_batch_size": 4,
        "max_steps": 3,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "linear",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "save_strategy": "no",
    }
    return LiereTrainer(
        model=LiereViTForImageClassification(config),
        args=RunArguments(str(directory), **defaults | options),
        train_dataset=Images(),
        data_collator=default_collate,
    )


def is_rotation(name: str) -> bool:
    return ".rotations." in name


def groups_of(trainer: LiereTrainer) -> dict[str, dict]:
    """The optimizer's group of every parameter; each is in one."""
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    found = [(names[id(each)], group) for group in trainer.optimizer.param_groups for each in group["params"]]
    assert len(found) == len(names) == len(dict(found))
    return dict(found)


@pytest.mark.parametrize("encoding", LEARNED)
@pytest.mark.parametrize("factor", [0.0, 1.0, 10.0])
def test_learning_rates_and_decay(tmp_path, encoding, factor):
    trainer = build_trainer(tmp_path, encoding, weight_decay=0.3, generator_learning_rate_factor=factor)
    trainer.create_optimizer_and_scheduler(num_training_steps=4)
    for expected in (1.0, 0.75):
        for name, group in groups_of(trainer).items():
            assert group["lr"] == pytest.approx(1e-3 * expected * (factor if is_rotation(name) else 1))
            decays = name.endswith(".weight") and "layernorm" not in name and not is_rotation(name)
            tokens = "cls_token" in name or "position_embeddings" in name
            assert group["weight_decay"] == (0.3 if decays or tokens else 0.0), name
        trainer.optimizer.step()
        trainer.lr_scheduler.step()


@pytest.mark.parametrize("encoding", ["absolute", "visionllama", "none"])
def test_without_learned_rotations_the_factor_changes_nothing(tmp_path, encoding):
    trainer = build_trainer(tmp_path, encoding, generator_learning_rate_factor=10.0)
    trainer.create_optimizer()
    assert {group["lr"] for group in trainer.optimizer.param_groups} == {1e-3}
    assert len(trainer.optimizer.param_groups) == 2


@pytest.mark.parametrize("encoding", LEARNED)
def test_adam_moves_generators_by_the_factor(tmp_path, encoding):
    """A first step of Adam without warm-up moves every entry with a gradient by the learning rate."""
    moved = {}
    for factor in (1.0, 10.0):
        trainer = build_trainer(
            tmp_path, encoding, max_steps=1, weight_decay=0.3, max_grad_norm=0.0, generator_learning_rate_factor=factor
        )
        rotations = trainer.model.liere_vit.rotations
        before = {name: parameter.detach().clone() for name, parameter in rotations.named_parameters()}
        trainer.train()
        steps = [(parameter.detach() - before[name]).abs().max() for name, parameter in rotations.named_parameters()]
        moved[factor] = torch.stack(steps)
    torch.testing.assert_close(moved[1.0], torch.full_like(moved[1.0], 1e-3), rtol=0.05, atol=0)
    torch.testing.assert_close(moved[10.0], torch.full_like(moved[10.0], 1e-2), rtol=0.05, atol=0)


@pytest.mark.parametrize("factor", [-1.0, float("nan"), float("inf")])
def test_a_factor_that_is_not_allowed(tmp_path, factor):
    with pytest.raises(InputError, match=f"generator_learning_rate_factor is {factor}, allowed is 0 or more"):
        RunArguments(str(tmp_path), generator_learning_rate_factor=factor)
