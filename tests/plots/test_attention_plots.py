"""Rollout and relevance against their definitions with whole matrices, and what figures show of them."""

import gzip
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from plotted_models import GRIDS, classifier, pixels

from liere_hf.configuration.prediction_options import PredictionOptions
from liere_hf.errors import InputError
from liere_hf.modeling.modeling_liere_vit import from_patches, to_patches
from liere_hf.modeling.position_encodings import POSITION_ENCODINGS
from liere_hf.plots import animate_attention, attention_maps, plot_attention
from liere_hf.prediction import load_predictor

ROOT = Path(__file__).parents[2]
PREFIXES = {
    "CLS": {"pooling": "cls", "num_register_tokens": 2},
    "mean with CLS and registers": {"pooling": "mean", "num_register_tokens": 2},
    "mean without CLS": {"pooling": "mean", "use_cls_token": False},
    "patches with CLS": {"pooling": "patches"},
}


def by_definition(model, inputs, labels):
    """Rollout and relevance after each layer from products of whole matrices, gradients by a backward pass."""
    model.set_attn_implementation("eager")
    outputs = model(inputs, output_attentions=True)
    for attention in outputs.attentions:
        attention.retain_grad()
    outputs.logits[range(len(inputs)), labels].sum().backward()
    identity = torch.eye(outputs.attentions[0].shape[-1], dtype=inputs.dtype)
    rollout, relevance = identity, identity
    found = []
    for attention in outputs.attentions:
        weights, gradient = attention.detach(), attention.grad
        rollout = (0.5 * weights.mean(1) + 0.5 * identity) @ rollout
        relevance = relevance + (gradient * weights).clamp(min=0).mean(1) @ relevance
        found.append((rollout, relevance - identity))
    config = model.config
    patches = slice(config.num_prefix_tokens, None)
    if config.pooling == "cls":
        return [tuple(each[:, 0, patches] for each in pair) for pair in found]
    rows = list(range(config.num_prefix_tokens, len(identity)))
    rows += [0] if config.pooling == "mean" and config.use_cls_token else []
    return [tuple(each[:, rows, patches].mean(1) for each in pair) for pair in found]


def check(model, num_axes):
    inputs = pixels(num_axes).double()
    labels = [4, 1]
    maps = attention_maps(model, inputs, labels=labels)
    assert maps.rollout.shape == maps.relevance.shape == (3, 2, *GRIDS[num_axes])
    assert maps.names == ("LABEL_4", "LABEL_1")
    for layer, (rollout, relevance) in enumerate(by_definition(model, inputs, labels)):
        torch.testing.assert_close(maps.rollout[layer].flatten(1), rollout, rtol=0, atol=1e-12)
        torch.testing.assert_close(maps.relevance[layer].flatten(1), relevance, rtol=0, atol=1e-12)
    assert maps.relevance[-1].max() > 1e-3


@pytest.mark.parametrize("num_axes", [1, 2, 3])
@pytest.mark.parametrize("encoding", POSITION_ENCODINGS)
def test_maps_follow_their_definitions(encoding, num_axes):
    check(classifier(num_axes, position_encoding=encoding).double(), num_axes)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_maps_of_what_is_pooled(prefix):
    check(classifier(2, **PREFIXES[prefix]).double(), 2)


def test_maps_leave_the_model_as_it_was():
    """Also where weights are frozen, and after predictions, which keep tensors of inference mode."""
    for encoding in ("visionllama", "liere"):
        model, inputs = classifier(position_encoding=encoding), pixels(2)
        before = attention_maps(model, inputs)
        implementation = model.config._attn_implementation
        assert implementation != "eager"
        model.requires_grad_(False)
        with torch.inference_mode():
            logits = model(inputs).logits
            maps = attention_maps(model, inputs.clone())
        assert model.config._attn_implementation == implementation
        torch.testing.assert_close(maps.logits, logits, rtol=1e-4, atol=1e-5)
        assert maps.labels.equal(logits.argmax(1))
        torch.testing.assert_close(maps.relevance, before.relevance)
        assert all(parameter.grad is None for parameter in model.parameters())


def test_a_label_that_the_model_lacks():
    with pytest.raises(InputError, match="label is 5, allowed are 0 to 4"):
        attention_maps(classifier(), pixels(2), labels=[0, 5])


def maps_in(figure) -> list[np.ndarray]:
    """Arrays of the maps over pictures: they are transparent."""
    return [image.get_array().data for axes in figure.axes for image in axes.images if image.get_alpha()]


def test_figures_of_images_show_picture_and_maps_of_the_layers():
    inputs = pixels(2)
    maps = attention_maps(classifier(2), inputs)
    plot = plot_attention(maps, inputs[1], layers=[1, 3], index=1)
    expected = [maps.rollout[0, 1], maps.relevance[0, 1], maps.rollout[2, 1], maps.relevance[2, 1]]
    for shown, values in zip(maps_in(plot.figure), expected, strict=True):
        np.testing.assert_allclose(shown, values)
    np.testing.assert_allclose(plot.figure.axes[0].images[0].get_array(), inputs[1].permute(1, 2, 0))
    assert plot.numbers is maps
    assert maps.names[1] in plot.caption
    labels = [axes.get_ylabel() for axes in plot.figure.axes]
    assert "layer 1" in labels
    assert "whole model" in labels
    with pytest.raises(InputError, match="layer is 4, allowed are 1 to 3"):
        plot_attention(maps, inputs[0], layers=[4])


def test_figures_of_clips_have_a_column_for_each_step_in_time():
    inputs = pixels(3)
    maps = attention_maps(classifier(3), inputs)
    shown = maps_in(plot_attention(maps, inputs[0]).figure)
    assert len(shown) == 4
    for step in range(2):
        np.testing.assert_allclose(shown[step], maps.rollout[2, 0, step])
        np.testing.assert_allclose(shown[step + 2], maps.relevance[2, 0, step])


def test_figures_of_volumes_have_slices_through_the_most_relevant_patch():
    inputs = pixels(3)
    maps = attention_maps(classifier(3), inputs)
    plot = plot_attention(maps, inputs[0], medium="volume")
    relevance = maps.relevance[2, 0].numpy()
    depth, height, width = np.unravel_index(relevance.argmax(), relevance.shape)
    slices = relevance[depth], relevance[:, height], relevance[:, :, width]
    for shown, values in zip(maps_in(plot.figure)[3:], slices, strict=True):
        np.testing.assert_allclose(shown, values)
        assert shown.max() == relevance.max()
    volume = inputs[0].movedim(1, -1)
    pictures = volume[2 * depth + 1], volume[:, 2 * height + 1], volume[:, :, 2 * width + 1]
    for axes, picture in zip(plot.figure.axes, pictures, strict=False):
        np.testing.assert_allclose(axes.images[0].get_array(), picture, atol=1e-6)


def test_figures_of_signals():
    inputs = pixels(1)
    maps = attention_maps(classifier(1), inputs)
    shown = maps_in(plot_attention(maps, inputs[0]).figure)
    np.testing.assert_allclose(shown[1][0], maps.relevance[2, 0])


def test_animation_has_all_frames_with_their_maps():
    inputs = pixels(3)
    maps = attention_maps(classifier(3), inputs)
    with Image.open(io.BytesIO(animate_attention(maps, inputs[0]))) as animation:
        assert animation.n_frames == 4
        frames = []
        for number in range(4):
            animation.seek(number)
            frames.append(np.asarray(animation.convert("RGB")).astype(int))
    # The brightest place of the third panel is the most relevant patch, in the frames of its step.
    step, row, column = np.unravel_index(int(maps.relevance[2, 0].argmax()), GRIDS[3])
    height, width = frames[0].shape[0] - 18, (frames[0].shape[1] - 12) // 3
    top, left = 18 + row * height // 3, 2 * (width + 6) + column * width // 5
    brightness = [frame[top : top + height // 3, left : left + width // 5].mean() for frame in frames]
    assert {int(number) // 2 for number in np.argsort(brightness)[2:]} == {step}


@pytest.mark.end_to_end
@pytest.mark.skipif(
    not (ROOT / ".cache" / "fashion-mnist").is_dir(), reason="needs Fashion-MNIST: `make fashion-mnist`"
)
def test_greying_relevant_patches_changes_the_answer_more_than_random_ones():
    """200 test pictures, 12 of 49 patches: how much more the answer's probability falls, with its 95% interval."""
    predictor = load_predictor(str(ROOT / "checkpoints" / "liere-fashion-mnist"), PredictionOptions(use_cpu=True))
    content = gzip.decompress((ROOT / ".cache" / "fashion-mnist" / "t10k-images-idx3-ubyte.gz").read_bytes())
    pictures = np.frombuffer(content, np.uint8, offset=16).reshape(-1, 28, 28)[:200]
    processor = predictor.to_pixels.processor
    inputs = processor([Image.fromarray(each).convert("RGB") for each in pictures], return_tensors="pt")[
        "pixel_values"
    ]
    maps = attention_maps(predictor.model, inputs)
    patches = to_patches(inputs, (4, 4)).flatten(1, 2)
    rows = torch.arange(len(inputs))

    def fall(order: torch.Tensor) -> torch.Tensor:
        """Of the probability of the answer, when the first twelve patches in this order become grey."""
        changed = patches.clone()
        changed[rows[:, None], order[:, :12]] = 0.0
        with torch.no_grad():
            logits = predictor.model(from_patches(changed.unflatten(1, (7, 7)), (4, 4))).logits
        return (maps.logits.softmax(1) - logits.softmax(1))[rows, maps.labels]

    generator = torch.Generator().manual_seed(0)
    random = torch.stack([fall(torch.rand(200, 49, generator=generator).argsort(1)) for _ in range(8)]).mean(0)
    for kind in ("rollout", "relevance"):
        order = getattr(maps, kind)[-1].flatten(1).argsort(1)
        for found in (fall(order.flip(1)) - random, random - fall(order)):
            low = found.mean() - 1.96 * found.std() / len(found) ** 0.5
            print(f"{kind}: {found.mean():.3f} (from {low:.3f})")
            assert low > 0.03
