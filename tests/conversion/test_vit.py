import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForVideoClassification,
    BertConfig,
    BertModel,
    DeiTConfig,
    DeiTForImageClassification,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    VideoMAEConfig,
    VideoMAEForVideoClassification,
    VideoMAEModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTModel,
    VivitConfig,
    VivitForVideoClassification,
    VivitModel,
    VJEPA2Config,
)

from liere_hf.conversion import ConversionOptions, convert, from_vit
from liere_hf.errors import InputError

SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": 5,
}


def saved_model(directory, config_class, model_class, **settings):
    torch.manual_seed(0)
    model = model_class(config_class(**{**SMALL, **settings})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.save_pretrained(directory)
    return model


@pytest.mark.parametrize("config_class, model_class", [
    (ViTConfig, ViTForImageClassification),
    (DeiTConfig, DeiTForImageClassification),
])  # fmt: skip
@pytest.mark.parametrize("position_encoding", ["liere", "rope_mixed", "absolute"])
def test_logits_equal_the_source(tmp_path, config_class, model_class, position_encoding):
    source = saved_model(tmp_path / "source", config_class, model_class)
    ViTImageProcessor(image_mean=(0.1, 0.2, 0.3)).save_pretrained(tmp_path / "source")
    options = ConversionOptions(position_encoding=position_encoding)
    convert(str(tmp_path / "source"), tmp_path / "model", "vit", options)
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "model")
    assert model.config.position_encoding == position_encoding
    for size, interpolate in ((32, {}), (48, {"interpolate_pos_encoding": True})):
        pixel_values = torch.randn(2, 3, size, size)
        with torch.no_grad():
            expected = source(pixel_values, **interpolate).logits
            # At other sizes, interpolating the table adds rounding errors.
            tolerance = 1e-6 if size == 32 else 5e-6
            torch.testing.assert_close(model(pixel_values).logits, expected, atol=tolerance, rtol=1e-6)
    assert tuple(ViTImageProcessor.from_pretrained(tmp_path / "model").image_mean) == (0.1, 0.2, 0.3)


@pytest.mark.parametrize(
    ("config_class", "model_class", "options"),
    [
        (ViTConfig, ViTModel, {}),
        (Dinov2Config, Dinov2Model, {}),
        (Dinov2Config, Dinov2Model, {"use_swiglu_ffn": True}),
        (Dinov2WithRegistersConfig, Dinov2WithRegistersModel, {"num_register_tokens": 3}),
        (Dinov2WithRegistersConfig, Dinov2WithRegistersModel, {"use_swiglu_ffn": True}),
    ],
)
def test_bare_models(tmp_path, config_class, model_class, options):
    source = saved_model(tmp_path / "source", config_class, model_class, **options)
    convert(str(tmp_path / "source"), tmp_path / "model", "vit", ConversionOptions())
    model = AutoModel.from_pretrained(tmp_path / "model")
    pixel_values = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected, converted = (each(pixel_values, output_hidden_states=True) for each in (source, model))
    torch.testing.assert_close(converted.last_hidden_state, expected.last_hidden_state, atol=1e-5, rtol=1e-6)
    for ours, theirs in zip(converted.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_generators_start_at_zero_and_learn(tmp_path):
    saved_model(tmp_path / "source", ViTConfig, ViTForImageClassification)
    model = from_vit(str(tmp_path / "source"), ConversionOptions(generator_block_size=16))
    generators = model.liere_vit.rotations.generators
    assert generators.shape == (2, 2, 4, 1, 16, 16)
    assert not generators.any()
    model(torch.randn(2, 3, 32, 32), labels=torch.tensor([0, 1])).loss.backward()
    assert generators.grad.triu(1).abs().amax((-1, -2)).min() > 0


def test_the_table_can_be_dropped(tmp_path):
    source = saved_model(tmp_path / "source", ViTConfig, ViTForImageClassification)
    model = from_vit(str(tmp_path / "source"), ConversionOptions(drop_position_embeddings=True))
    assert model.liere_vit.embeddings.position_embeddings is None
    with torch.no_grad():
        source.vit.embeddings.position_embeddings[:, 1:] = 0
        pixel_values = torch.randn(2, 3, 32, 32)
        torch.testing.assert_close(model(pixel_values).logits, source(pixel_values).logits, atol=1e-6, rtol=1e-6)


def test_unsupported_sources(tmp_path):
    with pytest.raises(InputError, match="missing is not a directory"):
        from_vit(str(tmp_path / "missing"), ConversionOptions())
    BertModel(
        BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    ).save_pretrained(tmp_path / "bert")
    with pytest.raises(InputError, match="model_type 'bert', allowed are vit, deit, dinov2"):
        from_vit(str(tmp_path / "bert"), ConversionOptions())
    saved_model(tmp_path / "vit", ViTConfig, ViTForImageClassification)
    with pytest.raises(InputError, match="is 'visionllama', allowed are absolute, rope_mixed, liere"):
        from_vit(str(tmp_path / "vit"), ConversionOptions(position_encoding="visionllama"))
    weights = tmp_path / "vit" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(InputError, match="cannot be read"):
        from_vit(str(tmp_path / "vit"), ConversionOptions())


@pytest.mark.parametrize(("config", "model_class"), [(ViTConfig, ViTModel), (Dinov2Config, Dinov2Model)])
@pytest.mark.parametrize("pooling", ["mean", "patches"])
def test_other_pooling_is_of_normalized_tokens(tmp_path, config, model_class, pooling):
    source = saved_model(tmp_path / "source", config, model_class)
    model = from_vit(str(tmp_path / "source"), ConversionOptions(pooling=pooling)).eval()
    pixel_values = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        tokens = source(pixel_values).last_hidden_state[:, int(pooling == "patches") :]
        torch.testing.assert_close(model(pixel_values).pooler_output, tokens.mean(1), rtol=0, atol=2e-5)


# ----- Without CLS, and video -----

SMALL_TOWER = {**SMALL, "intermediate_size": 96}


@pytest.mark.parametrize("position_encoding", ["liere", "absolute"])
@pytest.mark.parametrize("whole", [False, True])
def test_siglip(tmp_path, position_encoding, whole):
    """Its encoder at every size, alone or of a model of pictures and texts; the attention pooling is left out."""
    torch.manual_seed(0)
    vision = {key: value for key, value in SMALL_TOWER.items() if key != "num_labels"}
    text = {
        "hidden_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "vocab_size": 9,
    }
    if whole:
        model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).eval()
    else:
        model = SiglipVisionModel(SiglipVisionConfig(**vision)).eval()
    perturb(model)
    model.save_pretrained(tmp_path / "source")
    source = model.vision_model if whole else model
    convert(
        str(tmp_path / "source"), tmp_path / "model", "vit", ConversionOptions(position_encoding=position_encoding)
    )
    converted = AutoModel.from_pretrained(tmp_path / "model")
    for size, interpolate in ((32, {}), (48, {"interpolate_pos_encoding": True})):
        pixel_values = torch.randn(2, 3, size, size)
        with torch.no_grad():
            expected = source(pixel_values, **interpolate).last_hidden_state
            torch.testing.assert_close(converted(pixel_values).last_hidden_state, expected, atol=2e-5, rtol=0)


def test_siglip2_at_sizes_of_any_shape(tmp_path):
    """It takes flattened patches and the shape of their grid."""
    torch.manual_seed(0)
    sizes = {key: value for key, value in SMALL_TOWER.items() if key not in ("num_labels", "image_size")}
    source = Siglip2VisionModel(Siglip2VisionConfig(**sizes, num_patches=16)).eval()
    perturb(source)
    source.save_pretrained(tmp_path / "source")
    convert(str(tmp_path / "source"), tmp_path / "model", "vit", ConversionOptions())
    converted = AutoModel.from_pretrained(tmp_path / "model")
    for rows, columns in ((4, 4), (6, 5), (2, 3), (3, 8)):
        pixel_values = torch.randn(2, 3, 8 * rows, 8 * columns)
        patches = pixel_values.unflatten(3, (columns, 8)).unflatten(2, (rows, 8)).permute(0, 2, 4, 3, 5, 1)
        with torch.no_grad():
            expected = source(
                pixel_values=patches.flatten(3).flatten(1, 2),
                pixel_attention_mask=torch.ones(2, rows * columns, dtype=torch.long),
                spatial_shapes=torch.tensor([[rows, columns]] * 2),
            ).last_hidden_state
            torch.testing.assert_close(converted(pixel_values).last_hidden_state, expected, atol=2e-5, rtol=0)


VIDEO = {**SMALL_TOWER, "num_frames": 4}


@pytest.mark.parametrize(
    ("config", "model_class"),
    [
        (VideoMAEConfig(**VIDEO), VideoMAEForVideoClassification),
        (VideoMAEConfig(**VIDEO), VideoMAEModel),
        (VideoMAEConfig(**VIDEO, use_mean_pooling=False, qkv_bias=False), VideoMAEModel),
        (VivitConfig(**VIDEO, tubelet_size=[2, 8, 8]), VivitForVideoClassification),
        (VivitConfig(**VIDEO, tubelet_size=[1, 8, 16]), VivitModel),
    ],
)
def test_video(tmp_path, config, model_class):
    torch.manual_seed(0)
    source = model_class(config).eval()
    perturb(source)
    source.save_pretrained(tmp_path / "source")
    convert(str(tmp_path / "source"), tmp_path / "model", "vit", ConversionOptions())
    is_classifier = hasattr(source, "classifier")
    auto_class = AutoModelForVideoClassification if is_classifier else AutoModel
    model, info = auto_class.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(info.values())
    pixel_values = torch.randn(2, 4, 3, 32, 32)
    with torch.no_grad():
        expected, found = source(pixel_values), model(pixel_values)
    name = "logits" if is_classifier else "last_hidden_state"
    torch.testing.assert_close(found[name], expected[name], atol=2e-5, rtol=0)


def test_what_is_no_rotation_or_classifies_otherwise(tmp_path):
    VJEPA2Config().save_pretrained(tmp_path / "vjepa2")
    with pytest.raises(InputError, match="V-JEPA 2: its position encoding turns pairs of dimensions by two different"):
        from_vit(str(tmp_path / "vjepa2"), ConversionOptions())
    VideoMAEForVideoClassification(VideoMAEConfig(**VIDEO, use_mean_pooling=False)).save_pretrained(tmp_path / "first")
    with pytest.raises(InputError, match="classifies the first patch"):
        from_vit(str(tmp_path / "first"), ConversionOptions())


def perturb(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
