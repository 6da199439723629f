"""transformers' models for dense prediction train with the backbone, at a size that is not square."""

import pytest
import torch
from transformers import (
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    DetrConfig,
    DetrForObjectDetection,
    DINOv3ViTBackbone,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    DPTConfig,
    DPTForDepthEstimation,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    MaskFormerConfig,
    MaskFormerForInstanceSegmentation,
    UperNetConfig,
    UperNetForSemanticSegmentation,
    VitMatteConfig,
    VitMatteForImageMatting,
    VitPoseConfig,
    VitPoseForPoseEstimation,
    ZoeDepthConfig,
    ZoeDepthForDepthEstimation,
)

from liere_hf import LiereViTBackbone, LiereViTConfig
from liere_hf.conversion import ConversionOptions, convert

SIZE = (64, 96)
ALL_LAYERS = {"out_indices": [1, 2, 3, 4]}
TOKENS_WITH_CLS = {"reshape_hidden_states": False, "keep_cls_token": True}
NECK = {"neck_hidden_sizes": [16] * 4, "fusion_hidden_size": 16}
TRANSFORMER = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "num_queries": 5,
}


def backbone_config(**overrides):
    settings = {
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "num_register_tokens": 2,
        "image_size": 64,
        "patch_size": 16,
        "generator_init": "uniform",
    }
    return LiereViTConfig(**settings | overrides)


def dpt(backbone):
    config = DPTConfig(backbone_config=backbone, **NECK, is_hybrid=False)
    return DPTForDepthEstimation(config), {}


def depth_anything(backbone):
    config = DepthAnythingConfig(
        backbone_config=backbone, **NECK, patch_size=16, reassemble_hidden_size=32, head_hidden_size=8
    )
    return DepthAnythingForDepthEstimation(config), {}


def zoedepth(backbone):
    config = ZoeDepthConfig(
        backbone_config=backbone,
        **NECK,
        bottleneck_features=16,
        num_relative_features=8,
        num_attractors=[4, 2, 1, 1],
        bin_embedding_dim=16,
    )
    return ZoeDepthForDepthEstimation(config), {}


def vitpose(backbone):
    return VitPoseForPoseEstimation(VitPoseConfig(backbone_config=backbone, num_labels=5)), {}


def upernet(backbone):
    config = UperNetConfig(
        backbone_config=backbone,
        hidden_size=16,
        auxiliary_in_channels=32,
        auxiliary_channels=16,
        pool_scales=[1, 2],
        num_labels=5,
    )
    return UperNetForSemanticSegmentation(config), {"labels": torch.randint(5, (2, *SIZE))}


def masks():
    return {
        "mask_labels": [torch.randint(2, (3, *SIZE)).float()] * 2,
        "class_labels": [torch.tensor([0, 2, 4])] * 2,
    }


def maskformer(backbone):
    config = MaskFormerConfig(
        backbone_config=backbone,
        decoder_config=DetrConfig(**TRANSFORMER),
        fpn_feature_size=32,
        mask_feature_size=32,
        num_labels=5,
    )
    return MaskFormerForInstanceSegmentation(config), masks()


def mask2former(backbone):
    config = Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=32,
        dim_feedforward=32,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=5,
        train_num_points=20,
        num_labels=5,
    )
    return Mask2FormerForUniversalSegmentation(config), masks()


def detr(backbone):
    config = DetrConfig(backbone_config=backbone, use_timm_backbone=False, backbone=None, num_labels=5, **TRANSFORMER)
    target = {"class_labels": torch.tensor([1, 3]), "boxes": torch.rand(2, 4) / 4 + 0.25}
    mask = torch.ones(2, *SIZE, dtype=torch.long)
    mask[1, :, 64:] = 0
    return DetrForObjectDetection(config), {"labels": [target] * 2, "pixel_mask": mask}


def vitmatte(backbone):
    config = VitMatteConfig(
        backbone_config=backbone, hidden_size=32, convstream_hidden_sizes=[8] * 3, fusion_hidden_sizes=[16, 8, 8, 8]
    )
    return VitMatteForImageMatting(config), {}


@pytest.mark.parametrize(
    ("build", "settings", "output"),
    [
        (dpt, {**ALL_LAYERS, **TOKENS_WITH_CLS}, "predicted_depth"),
        (depth_anything, {**ALL_LAYERS, **TOKENS_WITH_CLS}, "predicted_depth"),
        (zoedepth, {**ALL_LAYERS, **TOKENS_WITH_CLS}, "predicted_depth"),
        (vitpose, {"reshape_hidden_states": False, "image_size": SIZE, "patch_size": [16, 16]}, "heatmaps"),
        (upernet, ALL_LAYERS, "loss"),
        (maskformer, ALL_LAYERS, "loss"),
        (mask2former, ALL_LAYERS, "loss"),
        (detr, {}, "loss"),
        (vitmatte, {"num_channels": 4}, "alphas"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_training_step(build, settings, output):
    torch.manual_seed(0)
    model, targets = build(backbone_config(**settings))
    (backbone,) = [module for module in model.modules() if isinstance(module, LiereViTBackbone)]
    pixel_values = torch.randn(2, backbone.config.num_channels, *SIZE)
    result = model.train()(pixel_values, **targets)[output]
    assert result.isfinite().all()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    result.sum().backward()
    # The last layer's queries, and so its generators, affect the output of every framework.
    for parameter in (backbone.rotations.generators, backbone.embeddings.patch_embeddings.projection.weight):
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().max() > 0
    optimizer.step()


@pytest.fixture
def dinov3(tmp_path):
    """Directories of a DINOv3 and of its conversion."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 48}
    source = DINOv3ViTModel(DINOv3ViTConfig(**sizes, image_size=64, patch_size=16, num_register_tokens=4))
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    source.save_pretrained(tmp_path / "source")
    convert(str(tmp_path / "source"), tmp_path / "converted", "dinov3", ConversionOptions())
    return tmp_path / "source", tmp_path / "converted"


def with_backbone(build, backbone):
    """The framework around a backbone with weights, and the name of the backbone in it."""
    model, _ = build(backbone.config)
    (name,) = [name for name, module in model.named_modules() if type(module) is type(backbone)]
    model.get_submodule(name).load_state_dict(backbone.state_dict())
    return model.eval(), name


@pytest.mark.parametrize(("build", "output"), [(upernet, "logits"), (mask2former, "masks_queries_logits")])
def test_a_converted_dinov3_takes_the_place_of_the_original(build, output, dinov3):
    source, converted = dinov3
    theirs, name = with_backbone(build, DINOv3ViTBackbone.from_pretrained(source, **ALL_LAYERS))
    ours, _ = with_backbone(build, LiereViTBackbone.from_pretrained(converted, **ALL_LAYERS))
    heads = {key: tensor for key, tensor in theirs.state_dict().items() if not key.startswith(f"{name}.")}
    missing, unexpected = ours.load_state_dict(heads, strict=False)
    assert not unexpected
    assert all(key.startswith(f"{name}.") for key in missing)
    pixel_values = torch.randn(1, 3, 512, 768)
    with torch.no_grad():
        expected = theirs(pixel_values)[output]
        torch.testing.assert_close(ours(pixel_values)[output], expected, rtol=0, atol=1e-4)


def test_dpt_trains_with_a_converted_dinov3(dinov3):
    """transformers' own DINOv3 backbone lacks the CLS token that DPT reads."""
    backbone = LiereViTBackbone.from_pretrained(dinov3[1], **ALL_LAYERS, **TOKENS_WITH_CLS)
    model, name = with_backbone(dpt, backbone)
    depth = model.train()(torch.randn(1, 3, 512, 768)).predicted_depth
    depth.sum().backward()
    assert depth.shape == (1, 512, 768)
    assert model.get_submodule(name).rotations.generators.grad.abs().max() > 0


@pytest.mark.parametrize("build", [dpt, depth_anything], ids=lambda build: build.__name__)
def test_depth_changes_where_the_image_does(build):
    """Changing one patch changes depth most at its location: tokens are arranged on the grid in the right order."""
    torch.manual_seed(0)
    settings = backbone_config(**ALL_LAYERS, **TOKENS_WITH_CLS)
    model, _ = build(settings)
    model.eval()
    pixel_values = torch.randn(1, 3, *SIZE)
    changed = pixel_values.clone()
    changed[..., 32:48, 64:80] += 5
    with torch.no_grad():
        before, after = (model(each).predicted_depth[0] for each in (pixel_values, changed))
    difference = (after - before).abs()
    row, column = (int(index) for index in torch.unravel_index(difference.argmax(), difference.shape))
    scale_row, scale_column = (size / pixels for size, pixels in zip(difference.shape, SIZE, strict=True))
    assert 24 <= row / scale_row < 56
    assert 56 <= column / scale_column < 88
