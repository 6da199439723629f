"""The recipes for fine-tuning: classifiers of other classes, augmentation, and clips."""

import av
import numpy as np
import pytest
import torch

from liere_hf import LiereViTConfig, LiereViTForImageClassification, LiereViTForVideoClassification
from liere_hf.configuration import ModelArguments, parse_recipe
from liere_hf.data.augmentation.batch_augmentation import BatchAugmentation
from liere_hf.data.draws import Draws
from liere_hf.model_loading import build_model
from liere_hf.modeling.video_processing_liere_vit import LiereViTVideoProcessor
from liere_hf.training.run import train


@pytest.mark.parametrize(
    ("names", "is_kept"),
    [
        (["cat", "dog", "emu"], True),
        (["dog", "cat", "emu"], False),
        (["ant", "bee", "fly"], False),
        (["cat", "dog"], False),
        (["LABEL_0", "LABEL_1", "LABEL_2"], True),
    ],
)
def test_a_classifier_of_other_classes_is_not_taken(tmp_path, names, is_kept):
    """Classes are told apart by their names: as many others are others, too."""
    config = LiereViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=16,
        image_size=8,
        patch_size=4,
        initializer_range=0.05,
        id2label=dict(enumerate(names)),
    )
    saved = LiereViTForImageClassification(config)
    torch.nn.init.constant_(saved.classifier.weight, 3.0)
    torch.nn.init.constant_(saved.classifier.bias, 1.0)
    saved.save_pretrained(tmp_path)
    arguments = ModelArguments(model_name_or_path=str(tmp_path), ignore_mismatched_sizes=True)
    model = build_model(arguments, ["cat", "dog", "emu"])
    assert [*model.config.id2label.values()] == ["cat", "dog", "emu"]
    assert saved.liere_vit.layers[0].state_dict().keys() == model.liere_vit.layers[0].state_dict().keys()
    for name, weight in saved.liere_vit.named_parameters():
        assert model.liere_vit.get_parameter(name).equal(weight), name
    assert (model.classifier.weight == 3).all() == (model.classifier.bias == 1).all() == is_kept
    if not is_kept:
        # As in a new model.
        assert model.classifier.weight.std().item() == pytest.approx(0.05, rel=0.4)
        assert not model.classifier.bias.any()
        assert model.classifier.weight.requires_grad


@pytest.mark.parametrize("step", [(0, 2), (0, -2), (2, 0), (-2, 0)])
def test_directions_stay(step):
    """In clips, right and left may be two classes: augmentation moves and turns a path a little, and mirrors none."""
    data_arguments = parse_recipe("clips_finetune", ["--model_name_or_path", "some/model"])[1]
    frames = torch.full((8, 3, 32, 32), 60, dtype=torch.uint8)
    start = [14 - 7 * each // 2 for each in step]
    for number, frame in enumerate(frames):
        row, column = (first + number * each for first, each in zip(start, step, strict=True))
        frame[:, row : row + 5, column : column + 5] = 160
    augmentation = BatchAugmentation.from_arguments(data_arguments, (0.5,) * 3, (0.5,) * 3)
    clips = augmentation(frames.repeat(200, 1, 1, 1, 1), Draws(0, 0, range(200)))
    # What differs from a pixel's usual value is the square, whatever its color has become.
    square = (clips - clips.median(dim=1, keepdim=True).values).abs().sum(2)
    along_rows, along_columns = (
        (square.sum(other) * torch.arange(32)).sum(-1) / square.sum((2, 3)) for other in (3, 2)
    )
    for places, each in ((along_rows, step[0]), (along_columns, step[1])):
        moved = places[:, -1] - places[:, 0]
        assert (moved * each > 0).all() if each else (moved.abs() < 7).all()


def test_classes_of_a_side_stay():
    assert not parse_recipe("imagefolder_finetune", ["--model_name_or_path", "some/model"])[1].horizontal_flip


def test_clips(tmp_path):
    """A trained video model takes new classes, in the folders of clips as they are."""
    config = LiereViTConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=[2, 16, 16],
        patch_size=[1, 8, 8],
        num_labels=5,
    )
    LiereViTForVideoClassification(config).save_pretrained(tmp_path / "model")
    LiereViTVideoProcessor(size={"shortest_edge": 16}).save_pretrained(tmp_path / "model")
    for label, name in enumerate(("dark", "light")):
        (tmp_path / "clips" / name).mkdir(parents=True)
        for number in range(10):
            with av.open(str(tmp_path / "clips" / name / f"{number}.mp4"), "w") as container:
                stream = container.add_stream("mpeg4", rate=10)
                stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
                for index in range(6):
                    random = np.random.default_rng([label, number, index])
                    pixels = random.integers(128 * label, 128 * label + 128, size=(24, 32, 3), dtype=np.uint8)
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
                container.mux(stream.encode())
    flags = ["--model_name_or_path", tmp_path / "model", "--data_dir", tmp_path / "clips", "--output_dir"]
    flags += [tmp_path / "run", "--max_steps", 4, "--data_num_proc", 1, "--use_cpu", "true", "--disable_tqdm", "true"]
    metrics = train(*parse_recipe("clips_finetune", list(map(str, flags))))
    assert set(metrics["eval_per_class"]) == {"dark", "light"}
