"""Importing liere_hf: what it registers, what it does not import, and its public names."""

import importlib.resources
import json
import subprocess
import sys
from pathlib import Path

import pytest
from preloaded import ONLY_TORCH, preloaded
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
    AutoModelForVideoClassification,
    AutoVideoProcessor,
    ViTImageProcessor,
)

import liere_hf

pytestmark = pytest.mark.xdist_group("preloaded")

IMPORT_OF_TRANSFORMERS = """
from transformers import (
    AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification,
    AutoModelForMaskedImageModeling, AutoModelForVideoClassification, AutoVideoProcessor, PreTrainedModel,
    ViTConfig, ViTForImageClassification, ViTImageProcessor, VideoMAEVideoProcessor,
)
from transformers.models.vit.modeling_vit import ViTModel
from transformers.models.videomae.video_processing_videomae import VideoMAEVideoProcessor
"""


@pytest.fixture
def config():
    return liere_hf.LiereViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        image_size=[4, 8, 8],
        patch_size=[2, 4, 4],
        generator_init="uniform",
    )


def test_every_public_name_exists():
    assert sorted(liere_hf.__all__) == liere_hf.__all__
    for name in liere_hf.__all__:
        assert hasattr(liere_hf, name), name


@pytest.mark.parametrize(
    ("auto_class", "model_class"),
    [
        (AutoModel, "LiereViTModel"),
        (AutoModelForImageClassification, "LiereViTForImageClassification"),
        (AutoModelForVideoClassification, "LiereViTForVideoClassification"),
        (AutoModelForMaskedImageModeling, "LiereViTForMaskedImageModeling"),
        (AutoBackbone, "LiereViTBackbone"),
    ],
)
def test_auto_models(auto_class, model_class, config, tmp_path):
    model = auto_class.from_config(config)
    assert type(model) is getattr(liere_hf, model_class)
    if auto_class is not AutoBackbone:
        model.save_pretrained(tmp_path)
        assert type(auto_class.from_pretrained(tmp_path)) is getattr(liere_hf, model_class)


def test_auto_config(config, tmp_path):
    assert type(AutoConfig.for_model("liere_vit")) is liere_hf.LiereViTConfig
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is liere_hf.LiereViTConfig
    assert loaded.grid_size == (2, 2, 2)


def test_auto_processors(config, tmp_path):
    """From saved processors, and from a directory that only names the model type."""
    for processor_class, auto_class in (
        (ViTImageProcessor, AutoImageProcessor),
        (liere_hf.LiereViTVideoProcessor, AutoVideoProcessor),
    ):
        directory = tmp_path / auto_class.__name__
        config.save_pretrained(directory)
        processor_class(image_mean=[0.1, 0.2, 0.3]).save_pretrained(directory)
        (file,) = directory.glob("*processor_config.json")
        for drop in ((), ("image_processor_type", "video_processor_type", "auto_map", "processor_class")):
            settings = {key: value for key, value in json.loads(file.read_text()).items() if key not in drop}
            file.write_text(json.dumps(settings))
            loaded = auto_class.from_pretrained(directory)
            assert type(loaded) is processor_class
            assert list(loaded.image_mean) == [0.1, 0.2, 0.3]


def modules_after(code):
    process = subprocess.run(
        [preloaded("python", ONLY_TORCH), "-c", f"{code}\nimport json, sys; print(json.dumps(sorted(sys.modules)))"],
        cwd=Path(liere_hf.__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(json.loads(process.stdout.splitlines()[-1]))


def test_import_loads_only_liere_hf_and_transformers():
    """Datasets, metrics, plots and video decoders are imported only when used."""
    added = modules_after("import liere_hf") - modules_after(IMPORT_OF_TRANSFORMERS)
    packages = {name.partition(".")[0] for name in added} - set(sys.stdlib_module_names)
    assert packages <= {"liere_hf", "transformers", "torch"}
    assert not {name for name in added if name.startswith("liere_hf.")} - {
        "liere_hf.modeling",
        "liere_hf.version",
        *(f"liere_hf.modeling.{path.stem}" for path in Path(liere_hf.__file__).parent.glob("modeling/*.py")),
    }


def test_the_package_is_typed():
    assert importlib.resources.files("liere_hf").joinpath("py.typed").is_file()
