"""The recipes for fine-tuning: on few drawn pictures from the released checkpoint, and on clips."""

import runpy
from pathlib import Path

import av
import numpy as np
import pytest

from liere_hf import LiereViTConfig, LiereViTForVideoClassification
from liere_hf.configuration import parse_recipe
from liere_hf.modeling.video_processing_liere_vit import LiereViTVideoProcessor
from liere_hf.training.run import train

EXAMPLE = Path(__file__).parents[2] / "examples" / "fine_tune_on_few_pictures.py"


@pytest.mark.end_to_end
def test_twenty_pictures_are_enough(tmp_path):
    """With 120 pictures of three classes: results/fine_tuning_few_pictures.json, by the same example."""
    fine_tune = runpy.run_path(str(EXAMPLE))["fine_tune"]
    assert fine_tune(tmp_path, classes=2, pictures=10, others=30)["accuracy"] > 0.9


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
