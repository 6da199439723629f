"""Initial generators: their frequencies against eigenvalues in float64, for every encoding that takes them."""

import math

import numpy as np
import pytest
import torch
from devices import DEVICES
from factory import SIZES, random_input, tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModel
from transformers.models.dinov3_vit.modeling_dinov3_vit import augment_patches_center_coordinates

from liere_hf import LiereViTConfig, LiereViTForImageClassification, LiereViTModel
from liere_hf.conversion import inflate, widen_generators
from liere_hf.modeling.generator_initialization import GENERATOR_INITS
from liere_hf.modeling.modeling_liere_vit import LiereViTRotations
from liere_hf.modeling.position_encodings import POSITION_ENCODINGS
from liere_hf.modeling.positions import augment_positions

STARTING = [name for name, encoding in POSITION_ENCODINGS.items() if encoding.initial_values is not None]
COMMUTING = {"rope_mixed", "comrope_ld", "comrope_ap", "string"}
CHOSEN_FREQUENCIES = ("planar", "random_basis", "random_bases")


def per_patch(config):
    """Skew-symmetric generators in radians per patch, float64 (layers, axes, heads, blocks, b, b)."""
    rotations = LiereViTRotations(config)
    rotations.initialize()
    raw = rotations.raw_generators(torch.device("cpu")).detach().double().triu(1)
    steps = torch.tensor([max(patches - 1, 1) for patches in config.grid_size], dtype=torch.float64)
    return ((raw - raw.mT) / steps.view(-1, 1, 1, 1, 1)).numpy()


def total_frequencies(generators):
    """f of every plane, (layers, heads, planes), sorted: -sum_i A_i^2 has every f^2 twice if the A_i commute."""
    squares = -(generators @ generators).sum(1)
    values = np.linalg.eigvalsh(squares)[..., ::2]
    return np.sort(np.sqrt(values.clip(0)).reshape(*values.shape[:2], -1))


@pytest.mark.parametrize("encoding", STARTING)
@pytest.mark.parametrize("init", GENERATOR_INITS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_generators_of_a_model_of_any_dtype_start_alike(encoding, init, dtype, tmp_path):
    config = tiny_config(position_encoding=encoding, generator_init=init)

    def started(default_dtype):
        before = torch.get_default_dtype()
        torch.set_default_dtype(default_dtype)
        try:
            torch.manual_seed(0)
            rotations = LiereViTRotations(config)
            rotations.initialize()
        finally:
            torch.set_default_dtype(before)
        return rotations.state_dict()

    if not (init == "uniform" and dtype == torch.float64):
        # Which is drawn in the dtype of the parameters.
        for (name, value), expected in zip(started(dtype).items(), started(torch.float32).values(), strict=True):
            assert torch.equal(value.float(), expected), name
    model = AutoModel.from_config(config, dtype=dtype)
    model.save_pretrained(tmp_path)
    for each in (model, AutoModel.from_config(AutoConfig.from_pretrained(tmp_path))):
        for value in each.rotations.parameters():
            assert value.dtype == torch.promote_types(dtype, torch.float32)
            assert value.isfinite().all() and (value != 0).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_of_low_precision_grow(dtype, tmp_path):
    LiereViTModel(tiny_config(generator_init="planar", generator_block_size=2)).to(dtype).save_pretrained(tmp_path)
    model = LiereViTModel.from_pretrained(tmp_path)
    assert model.dtype == dtype
    for grown in (widen_generators(model, 8), inflate(model, 4)):
        assert grown.rotations.generators.isfinite().all()
        assert grown.dtype == dtype


@pytest.mark.parametrize("num_axes", [1, 2, 3])
def test_the_center_of_a_sobol_sequence_has_a_direction(num_axes, monkeypatch):
    engine = torch.quasirandom.SobolEngine
    monkeypatch.setattr(engine, "draw", lambda self, count, dtype: torch.full((count, self.dimension), 0.5))
    blocks = per_patch(tiny_config(num_axes, generator_init="planar"))
    assert np.isfinite(blocks).all()
    assert total_frequencies(blocks).min() > 0.05


def test_the_encodings_that_start_with_frequencies():
    assert STARTING == ["rope_mixed", "liere", "comrope_ld", "comrope_ap", "string"]


@settings(max_examples=60, deadline=None)
@given(
    encoding=st.sampled_from(STARTING),
    init=st.sampled_from(CHOSEN_FREQUENCIES),
    num_axes=st.sampled_from([1, 2, 3]),
    head_dim=st.sampled_from([16, 24, 64]),
    width=st.sampled_from([2, 4, 8, 64]),
    shared=st.tuples(st.booleans(), st.booleans()),
    low=st.floats(0.01, 1),
    ratio=st.floats(1, 50),
    seed=st.integers(0, 9),
)
def test_frequencies_are_evenly_spaced_in_their_logarithm(
    encoding, init, num_axes, head_dim, width, shared, low, ratio, seed
):
    try:
        config = tiny_config(
            num_axes,
            position_encoding=encoding,
            generator_block_size=width,
            head_dim=head_dim,
            generator_init=init,
            generator_min_frequency=low,
            generator_max_frequency=low * ratio,
            share_generators_across_layers=shared[0],
            share_generators_across_heads=shared[1],
        )
    except ValueError:
        return
    torch.manual_seed(seed)
    generators = per_patch(config)
    width = config.generator_block_size
    if encoding == "comrope_ap":
        planes = width // 2 * -(-(head_dim // width) // num_axes)
    else:
        planes = (head_dim // width) * (width // 2 - (encoding == "string"))
    expected = np.geomspace(low, low * ratio, planes) if planes > 1 else np.array([low])
    if encoding in COMMUTING or init != "random_bases":
        found = total_frequencies(generators)
        if encoding == "comrope_ap":
            # All axes have the same frequencies, but for what the last round of blocks lacks.
            assert np.isclose(found[..., None], expected, rtol=1e-4).any(-1).all()
        else:
            expected = np.concatenate([np.zeros(found.shape[-1] - planes), expected])
            np.testing.assert_allclose(
                found, np.broadcast_to(expected, found.shape), rtol=2e-4, atol=1e-5 * low * ratio
            )
    else:
        # The axes' parts of one plane lie in different planes: their squares add up in the norm.
        norms = np.square(generators).sum((1, 3, 4, 5))
        np.testing.assert_allclose(norms, 2 * np.square(expected).sum(), rtol=1e-4)


@pytest.mark.parametrize("num_axes", [2, 3])
@pytest.mark.parametrize("encoding", ["rope_mixed", "liere", "string"])
def test_directions_are_spread_evenly_over_the_axes(encoding, num_axes):
    """Every axis gets its share of the squared frequencies of each octave; neighbouring heads differ."""
    config = tiny_config(
        num_axes,
        hidden_size=1024,
        num_attention_heads=4,
        head_dim=256,
        position_encoding=encoding,
        generator_init="planar",
    )
    config.generator_min_frequency = config.generator_max_frequency = 1.0
    torch.manual_seed(0)
    generators = per_patch(config)
    gram = np.einsum("lahbij,lchbij->lhac", generators, generators)
    gram /= np.trace(gram, axis1=-2, axis2=-1)[..., None, None]
    np.testing.assert_allclose(gram, np.broadcast_to(np.eye(num_axes) / num_axes, gram.shape), atol=0.06)
    assert np.abs(generators[0, :, 0] - generators[0, :, 1]).max() > 0.1
    assert np.abs(generators[0] - generators[1]).max() > 0.1


def test_bases_commute_or_not():
    torch.manual_seed(0)
    for init, commutes in (("planar", True), ("random_basis", True), ("random_bases", False)):
        generators = per_patch(tiny_config(2, generator_init=init))
        commutator = generators[:, 0] @ generators[:, 1] - generators[:, 1] @ generators[:, 0]
        assert (np.abs(commutator).max() < 1e-6) == commutes
    blocks = per_patch(tiny_config(2, generator_init="planar"))
    mask = np.kron(np.eye(4), np.ones((2, 2))).astype(bool)
    assert not blocks[..., ~mask].any()


@pytest.mark.parametrize("num_axes", [1, 2, 3])
def test_planar_liere_is_rope_mixed_at_the_beginning(num_axes):
    liere = LiereViTForImageClassification(tiny_config(num_axes, generator_init="planar")).eval()
    rope = LiereViTForImageClassification(tiny_config(num_axes, position_encoding="rope_mixed")).eval()
    state = liere.state_dict()
    blocks = state["liere_vit.rotations.generators"]
    pairs = torch.stack([blocks[..., i : i + 2, i : i + 2] for i in range(0, 8, 2)], dim=-3).flatten(-4, -3)
    rope.load_state_dict(state | {"liere_vit.rotations.generators": pairs})
    pixel_values = random_input(liere.config)
    torch.testing.assert_close(liere(pixel_values).logits, rope(pixel_values).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("encoding", STARTING)
def test_the_seed_decides(encoding):
    config = tiny_config(position_encoding=encoding, generator_init="random_basis")

    def drawn(seed):
        torch.manual_seed(seed)
        return LiereViTModel(config).rotations.state_dict()

    first, again, other = drawn(0), drawn(0), drawn(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(not torch.equal(first[name], other[name]) for name in first)


def test_an_axis_of_one_patch():
    generators = per_patch(tiny_config(2, image_size=[4, 12], patch_size=[4, 3], generator_init="planar"))
    assert np.isfinite(generators).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"generator_init": "fourier"},
            "generator_init is 'fourier', allowed for liere: uniform, planar, random_basis, random_",
        ),
        (
            {"generator_min_frequency": 0.0},
            "generator_min_frequency is 0.0, allowed is more than 0",
        ),
        ({"generator_max_frequency": math.inf}, "generator_max_frequency is inf, allowed is more than 0"),
        (
            {"generator_min_frequency": 2.0},
            "generator_min_frequency is 2.0, generator_max_frequency 1.5: allowed is the lower one first",
        ),
        ({"pos_embed_shift": -0.1}, "pos_embed_shift is -0.1, allowed is 0 or more"),
        ({"pos_embed_jitter": 0.5}, "pos_embed_jitter is 0.5, allowed is 1 or more"),
        ({"pos_embed_rescale": math.nan}, "pos_embed_rescale is nan, allowed is 1 or more"),
        (
            {"position_encoding": "comrope_ap", "generator_block_size": 16},
            "generator_block_size is 16, which makes 1 blocks of head_dim 16: comrope_ap needs at least one",
        ),
        (
            {"position_encoding": "string", "generator_block_size": 2},
            "generator_block_size is 2, allowed for string is 4 or more",
        ),
    ],
)
def test_what_is_not_allowed_is_said(options, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**options)


# ----- Positions in training -----


@pytest.mark.parametrize(
    "amounts", [{"shift": 0.3}, {"jitter": 1.5}, {"rescale": 2.0}, {"shift": 0.1, "jitter": 1.2, "rescale": 1.5}]
)
@pytest.mark.parametrize("device", DEVICES)
def test_coordinates_change_as_dinov3s(amounts, device):
    positions = torch.rand(1, 12, 2, device=device)
    torch.manual_seed(3)
    expected = augment_patches_center_coordinates(positions, **amounts)
    torch.manual_seed(3)
    torch.testing.assert_close(augment_positions(positions, **amounts), expected)
    assert (expected - positions).abs().max() > 1e-3


@pytest.mark.parametrize("num_axes", SIZES)
@pytest.mark.parametrize("encoding", ["visionllama", *STARTING])
@pytest.mark.parametrize("device", DEVICES)
def test_only_training_changes_coordinates(device, encoding, num_axes):
    config = tiny_config(
        num_axes,
        position_encoding=encoding,
        head_dim=24,
        pos_embed_shift=0.5,
        pos_embed_jitter=1.5,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = LiereViTModel(config).to(device)
    with torch.no_grad():
        for parameter in model.layers.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        pixel_values = random_input(config).to(device)
        evaluated = [model.eval()(pixel_values).last_hidden_state for _ in range(2)]
        trained = [model.train()(pixel_values).last_hidden_state for _ in range(2)]
    assert torch.equal(*evaluated)
    assert (trained[0] - trained[1]).abs().max() > 1e-4
    assert (trained[0] - evaluated[0]).abs().max() > 1e-4
    plain = LiereViTModel(
        LiereViTConfig(**{**config.to_dict(), "pos_embed_shift": None, "pos_embed_jitter": None})
    ).to(device)
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(plain.train()(pixel_values).last_hidden_state, evaluated[0], rtol=0, atol=1e-5)
