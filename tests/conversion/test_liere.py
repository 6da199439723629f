"""The authors' models, converted: the same logits and gradients, and exports with the same weights."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModelForImageClassification, AutoModelForVideoClassification

from liere_hf import LiereViTConfig, LiereViTForImageClassification
from liere_hf.conversion import ConversionOptions, convert, export_state_dict, from_liere
from liere_hf.errors import InputError
from liere_hf_cli.main import main

DIRECTORY = Path(__file__).parents[2].parent / "shared" / "official_checkpoints"
NAMES = (
    "absolute_2d",
    "absolute_3d",
    "liere64_2d",
    "liere8_2d",
    "liere8_2d_mean_pooling",
    "liere8_2d_shared_heads",
    "liere8_2d_shared_layers",
    "liere8_3d",
    "rope_mixed_2d",
    "visionllama_2d",
    "visionllama_3d",
)

needs_official_checkpoints = pytest.mark.skipif(
    not DIRECTORY.is_dir(), reason="shared/official_checkpoints is not there"
)


def load(name):
    """The recipe, the weights under the authors' names, and the outputs of the authors' code."""
    with safe_open(DIRECTORY / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        recipe = json.loads(file.metadata()["recipe"])
    prefix = "state_dict."
    weights = {key.removeprefix(prefix): tensors.pop(key) for key in list(tensors) if key.startswith(prefix)}
    return recipe, weights, tensors


def needed_flags(recipe):
    """Flags for the options that a checkpoint's shapes do not determine."""
    flags = [] if recipe["enc"] == "liere" else ["--position_encoding", recipe["enc"]]
    if recipe["nd"] == 3:
        flags += ["--image_size", *map(str, recipe["image"]), "--patch_size", *map(str, recipe["patch"])]
    if "pool" in recipe:
        flags += ["--pooling", recipe["pool"]]
    return flags


def in_our_layout(tensor):
    return tensor.transpose(1, 2) if tensor.ndim == 5 else tensor


@needs_official_checkpoints
@pytest.mark.parametrize("name", NAMES)
def test_logits_and_gradients_through_the_command_line(name, tmp_path):
    recipe, weights, computed = load(name)
    torch.save({"state_dict": weights, "epoch": 3}, tmp_path / "last.ckpt")
    with pytest.raises(SystemExit) as exit_:
        main(
            ["convert", str(tmp_path / "last.ckpt"), str(tmp_path / "model"), "--from", "liere", *needed_flags(recipe)]
        )
    assert exit_.value.code == 0
    auto_class = AutoModelForVideoClassification if recipe["nd"] == 3 else AutoModelForImageClassification
    model = auto_class.from_pretrained(tmp_path / "model")

    sizes = [key.removeprefix("input.") for key in computed if key.startswith("input.")]
    assert sizes
    for size in sizes:
        pixel_values = in_our_layout(computed[f"input.{size}"]).requires_grad_()
        logits = model(pixel_values).logits
        torch.testing.assert_close(logits, computed[f"logits.{size}"], atol=2e-5, rtol=0)
        if f"input_grad.{size}" in computed:
            (gradient,) = torch.autograd.grad(logits.square().sum(), pixel_values)
            expected = in_our_layout(computed[f"input_grad.{size}"])
            torch.testing.assert_close(gradient, expected, atol=1e-4, rtol=0)


@needs_official_checkpoints
@pytest.mark.parametrize("name", NAMES)
def test_export_restores_the_weights(name):
    recipe, weights, _ = load(name)
    flags = dict(zip(("image_size", "patch_size"), (recipe["image"], recipe["patch"]), strict=True))
    options = ConversionOptions(position_encoding=None if recipe["enc"] == "liere" else recipe["enc"])
    if recipe["nd"] == 3:
        options.image_size, options.patch_size = flags["image_size"], flags["patch_size"]
    model = from_liere(weights, options)
    exported = export_state_dict(model)
    assert exported.keys() == weights.keys()
    again = from_liere(exported, options).state_dict()
    for key, tensor in model.state_dict().items():
        assert tensor.equal(again[key]), key
    # The weights that the authors' code uses: no unused tables, and only the first layer's generators.
    for key, tensor in weights.items():
        if key not in ("model.pos_embedding", "model.cls_token", "model.position_encoder.generator_raw_params"):
            assert exported[key].equal(tensor), key


@needs_official_checkpoints
@pytest.mark.parametrize("kind", ["lightning", "bare", "safetensors", "flattened"])
def test_every_kind_of_file(kind, tmp_path):
    _, weights, computed = load("liere8_2d")
    if kind == "lightning":
        path = tmp_path / "epoch=1.ckpt"
        torch.save({"state_dict": weights, "hyper_parameters": {"lr": 1e-4}}, path)
    elif kind == "bare":
        path = tmp_path / "weights.pt"
        torch.save({key.removeprefix("model."): value for key, value in weights.items()}, path)
    elif kind == "safetensors":
        path = tmp_path / "weights.safetensors"
        save_file(weights, path)
    else:
        path = DIRECTORY / "liere8_2d.safetensors"
    model = convert(str(path), tmp_path / "model", "liere", ConversionOptions())
    torch.testing.assert_close(model(computed["input.24x24"]).logits, computed["logits.24x24"], atol=2e-5, rtol=0)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "model")
    assert tuple(processor.image_mean) == (0.4914, 0.4822, 0.4465)
    assert "liere-hf convert" in (tmp_path / "model" / "README.md").read_text()


def tiny_state_dict(**overrides):
    """A small model of this package, and its weights in the authors' layout."""
    settings = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "head_dim": 64,
        "intermediate_size": 32,
        "image_size": 16,
        "patch_size": 4,
        "position_mode": "linspace",
        "share_generators_across_layers": True,
        "num_labels": 3,
        "generator_init": "uniform",
    }
    model = LiereViTForImageClassification(LiereViTConfig(**{**settings, **overrides})).eval()
    return model, export_state_dict(model)


@pytest.mark.parametrize("block_size", [2, 4, 16, 32, 64])
@pytest.mark.parametrize("share_heads", [False, True])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_block_sizes_sharing_and_pooling_are_restored(block_size, share_heads, pooling):
    encoding = "rope_mixed" if block_size == 2 else "liere"
    model, state_dict = tiny_state_dict(
        position_encoding=encoding,
        generator_block_size=block_size,
        share_generators_across_heads=share_heads,
        pooling=pooling,
    )
    converted = from_liere(state_dict, ConversionOptions(pooling=pooling))
    assert converted.config.position_encoding == encoding
    assert converted.config.generator_block_size == block_size
    assert converted.config.share_generators_across_heads == share_heads
    pixel_values = torch.randn(2, 3, 24, 16)
    assert converted(pixel_values).logits.equal(model(pixel_values).logits)


def test_only_the_first_layers_generators_are_used():
    _, state_dict = tiny_state_dict()
    name = "model.position_encoder.generator_raw_params"
    per_layer = {**state_dict, name: torch.cat((state_dict[name], torch.randn_like(state_dict[name])), dim=1)}
    pixel_values = torch.randn(1, 3, 16, 16)
    logits = [from_liere(weights, ConversionOptions())(pixel_values).logits for weights in (state_dict, per_layer)]
    assert logits[0].equal(logits[1])


@pytest.mark.parametrize(
    "overrides, reason",
    [
        ({"share_generators_across_layers": False}, "generators differ by layer"),
        ({"position_mode": "sequential"}, "position_mode is 'sequential'"),
        (
            {"position_encoding": "absolute", "image_size": (4, 8, 8), "patch_size": (2, 4, 4)},
            "position_embedding_interpolation is 'cubic', in their code 'linear' with 3 axes",
        ),
        ({"qkv_bias": True}, "have a bias"),
        ({"key_bias": True}, "have a bias"),
        ({"use_gated_mlp": True}, "its MLPs are gated"),
        ({"use_pre_layernorm": True}, "its embeddings are normalized"),
        ({"final_layernorm": "none"}, "final_layernorm is 'none', in their code 'after_pooling'"),
        ({"pooling": "patches"}, "it pools patches without the CLS token"),
        ({"num_register_tokens": 1}, "register tokens"),
        ({"layer_scale_init_value": 0.1}, "LayerScale"),
        ({"head_dim": 32}, "head_dim is 32"),
        ({"use_absolute_position_embeddings": True}, "in addition to a rotary encoding"),
    ],
)
def test_what_the_authors_code_cannot_represent(overrides, reason):
    with pytest.raises(InputError, match=f"cannot represent this model: .*{reason}"):
        tiny_state_dict(**overrides)


def without(state_dict, name):
    return {key: value for key, value in state_dict.items() if key != name}


@pytest.mark.parametrize(
    "change, options, message",
    [
        (lambda weights: without(weights, "model.cls_token"), {}, "lacks the weight cls_token"),
        (lambda weights: without(weights, "model.mlp_head.1.bias"), {}, "lacks classifier.bias"),
        (lambda weights: {**weights, "model.extra": torch.zeros(1)}, {}, "has 1 unknown weights: extra"),
        (
            lambda weights: {**weights, "model.mlp_head.0.weight": torch.zeros(3)},
            {},
            r"layernorm.weight of shape \(3,\) where \(64,\) is expected",
        ),
        (
            lambda weights: without(weights, "model.position_encoder.generator_raw_params"),
            {},
            "give --position_encoding, allowed are visionllama, absolute, none",
        ),
        (lambda weights: weights, {"position_encoding": "absolute"}, "position_encoding is 'absolute', but"),
        (lambda weights: weights, {"image_size": [32]}, r"image_size is \[32, 32\] .* has 16 patches"),
        (lambda weights: weights, {"patch_size": [8]}, "has patches of 48 values"),
        (lambda weights: weights, {"patch_size": [1, 4, 4]}, "has generators for 2 axes, --patch_size has 3 values"),
        (lambda weights: weights, {"num_channels": 1}, "give --patch_size"),
    ],
)
def test_weights_that_do_not_match(change, options, message):
    _, state_dict = tiny_state_dict()
    with pytest.raises(InputError, match=message):
        from_liere(change(state_dict), ConversionOptions(**options))


def test_three_axes_need_sizes():
    _, state_dict = tiny_state_dict(image_size=(4, 8, 8), patch_size=(2, 4, 4))
    with pytest.raises(InputError, match="give --patch_size"):
        from_liere(state_dict, ConversionOptions())
    with pytest.raises(InputError, match="give --image_size"):
        from_liere(state_dict, ConversionOptions(patch_size=[2, 4, 4]))


class Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


@pytest.mark.parametrize(
    "content, message",
    [
        (lambda path: Malicious(path / "owned"), "is rejected"),
        (lambda path: {"state_dict": {}, "callback": Malicious(path / "owned")}, "is rejected"),
        (lambda path: {"state_dict": {"a": 1}}, "'a' has type int"),
        (lambda path: [1, 2], "does not contain a state dict"),
    ],
)
def test_files_that_are_not_checkpoints(tmp_path, content, message):
    path = tmp_path / "source.ckpt"
    torch.save(content(tmp_path), path)
    with pytest.raises(InputError, match=message):
        convert(str(path), tmp_path / "model", "liere", ConversionOptions())
    assert sorted(file.name for file in tmp_path.iterdir()) == ["source.ckpt"]


@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"text" * 99])
def test_broken_files(tmp_path, suffix, damage):
    _, state_dict = tiny_state_dict()
    path = tmp_path / f"source.{suffix}"
    if suffix == "ckpt":
        torch.save(state_dict, path)
    else:
        save_file(state_dict, path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=r"cannot be read|is rejected"):
        convert(str(path), tmp_path / "model", "liere", ConversionOptions())
    assert sorted(file.name for file in tmp_path.iterdir()) == [path.name]


def test_a_plain_pickle_executes_nothing(tmp_path):
    path = tmp_path / "source.ckpt"
    path.write_bytes(pickle.dumps(Malicious(tmp_path / "owned")))
    with pytest.raises(InputError):
        convert(str(path), tmp_path / "model", "liere", ConversionOptions())
    assert not (tmp_path / "owned").exists()


def test_output_directory_that_exists(tmp_path, capsys):
    _, state_dict = tiny_state_dict()
    save_file(state_dict, tmp_path / "source.safetensors")
    (tmp_path / "model").mkdir()
    with pytest.raises(SystemExit) as exit_:
        main(["convert", str(tmp_path / "source.safetensors"), str(tmp_path / "model"), "--from", "liere"])
    assert exit_.value.code == 2
    assert capsys.readouterr().err.strip().endswith("already exists")
    assert not any((tmp_path / "model").iterdir())


def test_conversion_with_widening(tmp_path):
    model, state_dict = tiny_state_dict(position_encoding="rope_mixed")
    save_file(state_dict, tmp_path / "source.safetensors")
    options = ConversionOptions(generator_block_size=8)
    convert(str(tmp_path / "source.safetensors"), tmp_path / "model", "liere", options)
    wide = AutoModelForImageClassification.from_pretrained(tmp_path / "model")
    assert wide.config.generator_block_size == 8
    pixel_values = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(wide(pixel_values).logits, model(pixel_values).logits, atol=1e-5, rtol=0)
    assert load_file(tmp_path / "model" / "model.safetensors")["liere_vit.rotations.generators"].shape[-1] == 8
