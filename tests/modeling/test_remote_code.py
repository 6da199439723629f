"""Saved models load from their own code: without this package, with it, and together with another revision."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from factory import random_input, random_model, tiny_config, write_clip
from PIL import Image
from preloaded import ONLY_TORCH, preloaded
from transformers import AutoModelForImageClassification, ViTImageProcessor

import liere_hf
from liere_hf import (
    LiereViTForImageClassification,
    LiereViTForMaskedImageModeling,
    LiereViTForVideoClassification,
    LiereViTModel,
    LiereViTVideoProcessor,
)
from liere_hf.modeling.modeling_liere_vit import AUTO_MAP

pytestmark = pytest.mark.xdist_group("preloaded")

MODELING = Path(liere_hf.__file__).parent / "modeling"

WITH_PACKAGE = "import liere_hf\n"
WITHOUT_PACKAGE = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "liere_hf":
            raise ModuleNotFoundError("No module named 'liere_hf'", name="liere_hf")

sys.meta_path.insert(0, Blocker())
"""
HEAD = """
import sys
from pathlib import Path
import torch
import transformers
root, results = Path.cwd(), {}

@torch.no_grad()
def run(auto_class, name, pixels):
    model = getattr(transformers, auto_class).from_pretrained(root / name, trust_remote_code=True).eval()
    return model, model(torch.load(root / pixels))
"""
TAIL = """
results["package_imported"] = "liere_hf" in sys.modules
torch.save(results, sys.argv[1])
"""
LOAD_EVERYTHING = """
model, outputs = run("AutoModelForImageClassification", "image", "image.pt")
results["image"] = outputs.logits
model.save_pretrained(root / sys.argv[2] / "image")
results["image_again"] = run("AutoModelForImageClassification", Path(sys.argv[2]) / "image", "image.pt")[1].logits
results["bare"] = run("AutoModel", "bare", "image.pt")[1].last_hidden_state
results["bare_of_classifier"] = run("AutoModel", "image", "image.pt")[1].last_hidden_state
results["masked"] = run("AutoModelForMaskedImageModeling", "masked", "image.pt")[1].reconstruction
results["video"] = run("AutoModelForVideoClassification", "video", "video.pt")[1].logits

config = transformers.AutoConfig.from_pretrained(root / "image", trust_remote_code=True)
config.set_output_features_output_indices(out_features=None, out_indices=[0, 2])
backbone = transformers.AutoBackbone.from_config(config, trust_remote_code=True)
results["feature_maps"] = [tuple(each.shape) for each in backbone(torch.load(root / "image.pt")).feature_maps]

for task, file in (("image", "picture.png"), ("video", "clip.mp4")):
    classify = transformers.pipeline(f"{task}-classification", model=str(root / task), trust_remote_code=True)
    scores = classify(str(root / file), top_k=5)
    results[f"{task}_pipeline"] = {score["label"]: score["score"] for score in scores}
"""
TWO_REVISIONS = """
for name in sys.argv[2:]:
    results[name] = run("AutoModelForImageClassification", name, "image.pt")[1].logits
for name in sys.argv[2:]:
    results[f"{name}_again"] = run("AutoModelForImageClassification", name, "image.pt")[1].logits
"""


def run_python(code, directory, tmp_path, *arguments):
    """Run code in a new process with empty caches, and return its `results`."""
    environment = {
        **os.environ,
        "HF_HOME": str(tmp_path / "hf_home"),
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    output = tmp_path / "results.pt"
    process = subprocess.run(
        [preloaded("python", ONLY_TORCH), "-c", code, str(output), *arguments],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    return torch.load(output)


@pytest.fixture(scope="module")
def models():
    image_config = tiny_config(num_register_tokens=1)
    video_config = tiny_config(3, image_size=[4, 16, 16], patch_size=[2, 8, 8])
    return {
        "image": random_model(LiereViTForImageClassification, image_config),
        "bare": random_model(LiereViTModel, image_config),
        "masked": random_model(LiereViTForMaskedImageModeling, image_config),
        "video": random_model(LiereViTForVideoClassification, video_config),
    }


@pytest.fixture(scope="module")
def directory(models, tmp_path_factory):
    """Saved models with processors, inputs, and two revisions of the code, `first` and `second`."""
    root = tmp_path_factory.mktemp("saved")
    for name, model in models.items():
        model.save_pretrained(root / name)
    ViTImageProcessor(size={"height": 8, "width": 12}).save_pretrained(root / "image")
    LiereViTVideoProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(
        root / "video"
    )
    picture = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    Image.fromarray(picture).save(root / "picture.png")
    write_clip(root / "clip.mp4")
    torch.save(random_input(models["image"].config), root / "image.pt")
    torch.save(random_input(models["video"].config), root / "video.pt")

    shutil.copytree(root / "image", root / "first")
    shutil.copytree(root / "image", root / "second")
    code = root / "second" / "modeling_liere_vit.py"
    logits = "logits = self.classifier(outputs.pooler_output)"
    assert code.read_text().count(logits) == 1
    code.write_text(code.read_text().replace(logits, logits.replace("= ", "= 2 * ")))
    return root


@pytest.fixture(scope="module", params=["without", pytest.param("with", marks=pytest.mark.extensive)])
def results(request, directory, tmp_path_factory):
    """All models loaded in one new process, without and with the package."""
    head = WITH_PACKAGE if request.param == "with" else WITHOUT_PACKAGE
    saved_again = f"again_{request.param}"
    results = run_python(
        head + HEAD + LOAD_EVERYTHING + TAIL, directory, tmp_path_factory.mktemp(request.param), saved_again
    )
    assert results["package_imported"] == (request.param == "with")
    return {**results, "saved_again": directory / saved_again / "image"}


def test_logits_are_bit_equal(results, models, directory):
    assert torch.equal(results["image"], models["image"](torch.load(directory / "image.pt")).logits)
    assert torch.equal(results["video"], models["video"](torch.load(directory / "video.pt")).logits)


def test_bare_and_masked_models_are_bit_equal(results, models, directory):
    pixel_values = torch.load(directory / "image.pt")
    assert torch.equal(results["bare"], models["bare"](pixel_values).last_hidden_state)
    assert torch.equal(results["bare_of_classifier"], models["image"].liere_vit(pixel_values).last_hidden_state)
    assert torch.equal(results["masked"], models["masked"](pixel_values).reconstruction)


@pytest.mark.extensive
def test_saved_again_and_loaded_again(results, directory):
    """A loaded model is saved completely (code, weights, configuration), with and without this package."""
    assert torch.equal(results["image_again"], results["image"])
    for file in MODELING.glob("*.py"):
        if file.name not in ("__init__.py", "video_processing_liere_vit.py"):
            assert (results["saved_again"] / file.name).read_text() == file.read_text()
    model = AutoModelForImageClassification.from_pretrained(results["saved_again"])
    assert type(model) is LiereViTForImageClassification
    assert model.config.auto_map == AUTO_MAP
    assert torch.equal(model(torch.load(directory / "image.pt")).logits, results["image"])


def test_backbone_from_the_remote_configuration(results):
    assert results["feature_maps"] == [(2, 32, 2, 4)] * 2


def test_image_classification_pipeline(results, models, directory):
    """The processor's arithmetic scales pixels to [-1, 1]; it is written out here."""
    picture = np.asarray(Image.open(directory / "picture.png"))
    pixel_values = torch.from_numpy(np.moveaxis(picture / 127.5 - 1, -1, 0)[None]).float()
    scores = models["image"](pixel_values).logits[0].softmax(-1).tolist()
    assert results["image_pipeline"] == pytest.approx(
        {f"LABEL_{index}": score for index, score in enumerate(scores)}, abs=1e-5
    )


def test_video_classification_pipeline(results, models, directory):
    processor = LiereViTVideoProcessor.from_pretrained(directory / "video")
    clip = processor(str(directory / "clip.mp4"), num_frames=4, do_sample_frames=True, return_tensors="pt")
    scores = models["video"](clip.pixel_values).logits[0].softmax(-1).tolist()
    assert results["video_pipeline"] == pytest.approx(
        {f"LABEL_{index}": score for index, score in enumerate(scores)}, abs=1e-5
    )


@pytest.mark.parametrize(
    "order", [("first", "second"), pytest.param(("second", "first"), marks=pytest.mark.extensive)], ids="-".join
)
@pytest.mark.extensive
def test_two_revisions_in_one_process(order, models, directory, tmp_path):
    results = run_python(WITHOUT_PACKAGE + HEAD + TWO_REVISIONS + TAIL, directory, tmp_path, *order)
    expected = models["image"](torch.load(directory / "image.pt")).logits
    assert not results["package_imported"]
    for suffix in ("", "_again"):
        assert torch.equal(results[f"first{suffix}"], expected)
        assert torch.equal(results[f"second{suffix}"], 2 * expected)


def test_saving_sets_the_auto_map_to_existing_files(directory):
    for name in ("image", "bare", "masked", "video"):
        for reference in AUTO_MAP.values():
            module, _, class_name = reference.partition(".")
            assert f"class {class_name}(" in (directory / name / f"{module}.py").read_text()


def imports_of(node, guarded=False):
    """Yields every import below a node, and whether it is in the body of a `try`."""
    for field, children in ast.iter_fields(node):
        inside = guarded or (isinstance(node, ast.Try) and field == "body")
        for child in children if isinstance(children, list) else [children]:
            if isinstance(child, ast.Import | ast.ImportFrom):
                yield child, inside
            elif isinstance(child, ast.AST):
                yield from imports_of(child, inside)


@pytest.mark.parametrize("file", sorted(MODELING.glob("*.py")), ids=lambda file: file.name)
def test_modeling_imports_only_torch_transformers_and_its_siblings(file):
    """Triton and PyAV may be imported only in a `try`."""
    allowed = {"torch", "transformers", *sys.stdlib_module_names}
    for node, guarded in imports_of(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1
            assert (MODELING / f"{node.module}.py").is_file()
            continue
        names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
        assert {name.partition(".")[0] for name in names} <= (allowed | {"triton", "av"} if guarded else allowed)
