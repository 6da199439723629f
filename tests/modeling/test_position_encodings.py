"""A position encoding that the package does not have, added by one function and one entry, works everywhere."""

import json
from pathlib import Path

import pytest
import scipy.stats
import torch
from factory import random_input, random_model, tiny_config
from torch.func import functional_call
from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification

from liere_hf import LiereViTConfig, LiereViTForImageClassification
from liere_hf.benchmark.models import PRESETS, build_contestant, contestant_names
from liere_hf.cards import build_model_card
from liere_hf.configuration import build_model_config, compared_encodings, parse_recipe, recipe_names
from liere_hf.conversion import ConversionOptions, export_state_dict, inflate, widen_generators
from liere_hf.conversion.vit import from_vit
from liere_hf.errors import InputError
from liere_hf.modeling.modeling_liere_vit import LiereViTRotations
from liere_hf.modeling.position_encodings import POSITION_ENCODINGS, PositionEncoding
from liere_hf.reproduction import analyses
from liere_hf.reproduction.experiments import EXPERIMENTS, read_scale
from liere_hf.reproduction.figures import _style
from liere_hf.run_directory import read_checkpoint
from liere_hf_cli.main import main

COLOR = "#56B4E9"


def common_basis_generators(config, parameters, device):
    """A_i = f_i A: one A per block and one factor per axis."""
    return parameters["factors"][..., None, None] * parameters["basis"][:, None]


COMMON_BASIS = PositionEncoding(
    title="CommonBasis{block_size}",
    paper_name="common_basis{block_size}",
    colors={8: COLOR},
    generators=common_basis_generators,
    parameters={
        "basis": ("layers", "heads", "blocks", "width", "width"),
        "factors": ("layers", "axes", "heads", "blocks"),
    },
)


@pytest.fixture(autouse=True)
def _added(monkeypatch):
    monkeypatch.setitem(POSITION_ENCODINGS, "common_basis", COMMON_BASIS)


def model(num_axes=2, **overrides):
    return random_model(
        LiereViTForImageClassification, tiny_config(num_axes, position_encoding="common_basis", **overrides)
    )


def run(*argv):
    with pytest.raises(SystemExit) as exit_:
        main([*map(str, argv)])
    assert exit_.value.code == 0


# ----- The model -----


def test_configuration_accepts_it(tmp_path):
    config = tiny_config(position_encoding="common_basis")
    config.save_pretrained(tmp_path)
    assert LiereViTConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()
    with pytest.raises(ValueError, match="generator_block_size is 6, it must be even and divide head_dim"):
        tiny_config(position_encoding="common_basis", generator_block_size=6)
    with pytest.raises(ValueError, match=r"allowed are absolute, .*, common_basis"):
        tiny_config(position_encoding="basis")


@pytest.mark.parametrize("share_layers", [False, True])
@pytest.mark.parametrize("share_heads", [False, True])
def test_rotations_are_matrix_exponentials(share_layers, share_heads):
    config = tiny_config(
        3,
        position_encoding="common_basis",
        share_generators_across_layers=share_layers,
        share_generators_across_heads=share_heads,
    )
    rotations = LiereViTRotations(config).double()
    layers, heads = 1 if share_layers else 2, 1 if share_heads else 2
    shapes = {name: tuple(parameter.shape) for name, parameter in rotations.named_parameters()}
    assert shapes == {"basis": (layers, heads, 2, 8, 8), "factors": (layers, 3, heads, 2)}
    for parameter in rotations.parameters():
        torch.nn.init.normal_(parameter)
    positions = torch.randn(2, 5, 3, dtype=torch.float64)
    upper = rotations.basis.detach().triu(1)
    actual = rotations(positions, torch.float64)
    assert len(actual) == 2
    for layer, rotation in enumerate(actual):
        layer = min(layer, layers - 1)
        angles = torch.einsum("bta,ahn->bthn", positions, rotations.factors[layer].detach())
        expected = torch.matrix_exp(angles[..., None, None] * (upper - upper.mT)[layer])
        torch.testing.assert_close(rotation[:, 1:], expected, rtol=0, atol=1e-12)
        assert torch.equal(rotation[:, 0], torch.eye(8, dtype=torch.float64).expand_as(rotation[:, 0]))


def test_gradients_are_finite_differences():
    config = tiny_config(position_encoding="common_basis", hidden_size=8, num_attention_heads=1, num_hidden_layers=1)
    module = LiereViTRotations(config).double()
    positions = torch.randn(1, 2, 2, dtype=torch.float64)

    def rotations(basis, factors):
        return torch.stack(functional_call(module, {"basis": basis, "factors": factors}, (positions, torch.float64)))

    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    assert torch.autograd.gradcheck(rotations, (module.basis, module.factors))


def test_a_training_step_moves_every_parameter():
    trained = model().train()
    before = {name: parameter.detach().clone() for name, parameter in trained.liere_vit.rotations.named_parameters()}
    optimizer = torch.optim.SGD(trained.parameters(), lr=1)
    trained(random_input(trained.config), labels=torch.tensor([0, 1])).loss.backward()
    optimizer.step()
    upper = torch.ones(8, 8).triu(1).bool()
    after = dict(trained.liere_vit.rotations.named_parameters())
    assert (after["factors"] != before["factors"]).all()
    assert ((after["basis"] != before["basis"]) == upper).all()


def test_initial_values_are_uniform():
    """Like the generators of LieRE; the basis is large enough to test its distribution."""
    torch.manual_seed(0)
    config = tiny_config(hidden_size=64, position_encoding="common_basis", generator_init_scale=0.5)
    rotations = LiereViTForImageClassification(config).liere_vit.rotations
    for parameter in rotations.parameters():
        assert 0 <= parameter.min() < parameter.max() < 0.5
    values = rotations.basis.detach().flatten().numpy()
    assert scipy.stats.kstest(values, "uniform", args=(0, 0.5)).pvalue > 1e-3


def test_without_initial_values_it_starts_uniform_only():
    assert LiereViTConfig(position_encoding="common_basis").generator_init == "uniform"
    with pytest.raises(ValueError, match="generator_init is 'planar', allowed for common_basis: uniform"):
        tiny_config(position_encoding="common_basis", generator_init="planar")


@pytest.mark.parametrize("name", [name for name in recipe_names() if "finetune" not in name])
def test_every_recipe_for_new_models_takes_it(name):
    model_arguments, *_ = parse_recipe(name, ["--position_encoding", "common_basis"])
    assert build_model_config(model_arguments).generator_init == "uniform"


def test_parameters_keep_float32(tmp_path):
    single = model()
    before = {name: parameter.detach().clone() for name, parameter in single.liere_vit.rotations.named_parameters()}
    single.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
    for each in (loaded, single.to(torch.bfloat16)):
        assert each.classifier.weight.dtype == torch.bfloat16
        for name, parameter in each.liere_vit.rotations.named_parameters():
            assert parameter.dtype == torch.float32
            assert torch.equal(parameter, before[name])


@pytest.mark.parametrize("name", ["basis", "factors"])
@torch.no_grad()
def test_kept_rotations_follow_a_change(name):
    changed = model()
    pixel_values = random_input(changed.config)
    before = changed(pixel_values).logits
    assert torch.equal(changed(pixel_values).logits, before)
    getattr(changed.liere_vit.rotations, name).mul_(1.3)
    after = changed(pixel_values).logits
    assert (after - before).abs().max() > 1e-3
    fresh = LiereViTForImageClassification(changed.config).eval()
    fresh.load_state_dict(changed.state_dict())
    assert torch.equal(fresh(pixel_values).logits, after)


def test_saved_and_reloaded_bit_equal(tmp_path):
    saved = model()
    saved.save_pretrained(tmp_path)
    loaded, info = AutoModelForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    pixel_values = random_input(saved.config)
    assert torch.equal(loaded(pixel_values).logits, saved(pixel_values).logits)


def test_export_gives_the_same_logits():
    exported = model()
    pixel_values = random_input(exported.config)
    program = torch.export.export(exported, (pixel_values,))
    expected = exported(pixel_values).logits
    torch.testing.assert_close(program.module()(pixel_values).logits, expected, rtol=0, atol=1e-5)


@pytest.mark.end_to_end
def test_compiled_training_has_the_same_gradients():
    trained = model(num_hidden_layers=1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
    pixel_values, gradients = random_input(trained.config), []
    for forward in (trained, torch.compile(trained, backend="eager", fullgraph=True)):
        trained.zero_grad()
        forward(pixel_values).logits.square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in trained.liere_vit.rotations.parameters()])
    for eager, compiled in zip(*gradients, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-3, atol=1e-3)


# ----- Conversion -----


def test_inflation_starts_time_at_zero():
    image = model()
    video = inflate(image, 2, 2)
    factors = video.liere_vit.rotations.factors
    assert factors.shape[1] == 3
    assert not factors[:, 0].any()
    pixel_values = random_input(image.config)
    clip = pixel_values[:, None].expand(-1, 2, -1, -1, -1)
    torch.testing.assert_close(video(clip).logits, image(pixel_values).logits, rtol=0, atol=1e-5)


def test_conversions_that_need_free_generators_are_refused(tmp_path):
    with pytest.raises(InputError, match="position_encoding is 'common_basis', which has no free generators to widen"):
        widen_generators(model(), 16)
    with pytest.raises(InputError, match="position_encoding is 'common_basis', which their code does not have"):
        export_state_dict(model(head_dim=64, position_mode="linspace", share_generators_across_layers=True))
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ViTForImageClassification(ViTConfig(**sizes, image_size=8, patch_size=4)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="is 'common_basis', allowed are absolute, rope_mixed, liere"):
        from_vit(str(tmp_path), ConversionOptions(position_encoding="common_basis"))


# ----- From training to figures -----


def test_it_trains_from_the_command_line_and_gets_a_card(tmp_path, monkeypatch):
    flags = {
        "position_encoding": "common_basis",
        "generator_block_size": 8,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "max_steps": 3,
        "train_examples": 64,
        "eval_examples": 64,
        "eval_strategy": "no",
        "save_strategy": "no",
        "disable_tqdm": "true",
        "use_cpu": "true",
        "output_dir": tmp_path / "run",
    }
    run("train", "digits", *(text for name, value in flags.items() for text in (f"--{name}", value)))
    checkpoint = read_checkpoint(tmp_path / "run")
    assert checkpoint.config["position_encoding"] == "common_basis"
    card = build_model_card(checkpoint)
    assert card.data.model_name == "ViT with CommonBasis8 position encoding on scikit-learn digits"
    assert "parameters with CommonBasis8 position encoding" in card.text
    assert (tmp_path / "run" / "README.md").read_text() == str(card)
    trained = AutoModelForImageClassification.from_pretrained(tmp_path / "run")
    trained.save_pretrained(tmp_path / "again")
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "again")
    pixel_values = random_input(trained.config)
    assert torch.equal(again(pixel_values).logits, trained(pixel_values).logits)
    monkeypatch.delitem(POSITION_ENCODINGS, "common_basis")
    with pytest.raises(InputError, match="has position_encoding 'common_basis', allowed are absolute, visionllama"):
        read_checkpoint(tmp_path / "run")


def test_flops_table_has_its_row(tmp_path, monkeypatch):
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 3, "head_dim": 64}
    monkeypatch.setattr(analyses, "PRESETS", {"small": sizes | {"intermediate_size": 64}})
    run("reproduce", "flops", "--results_dir", tmp_path)
    directory = tmp_path / "flops" / "cpu"
    rows = {row["encoding"]: row for row in json.loads((directory / "results.json").read_text())["rows"]}
    assert [*rows][-2:] == ["LieRE64", "CommonBasis8"]
    assert "| small | CommonBasis8 |" in (directory / "table.md").read_text()
    assert rows["CommonBasis8"]["applying_percent"] == rows["LieRE8"]["applying_percent"] > 0
    # 2 layers of 3 heads of 8 blocks: LieRE8 has 2 matrices per block, this one has 1 matrix and 2 factors.
    difference = rows["LieRE8"]["num_parameters"] - rows["CommonBasis8"]["num_parameters"]
    assert difference == 2 * 3 * 8 * (8 * 8 - 2)


@pytest.mark.parametrize("scale_name", ["paper", "gpu", "cpu"])
def test_experiments_have_its_runs(scale_name):
    scale = read_scale(scale_name)
    with_it = {
        name
        for name, experiment in EXPERIMENTS.items()
        if any(setting.labels.get("encoding") == "CommonBasis8" for setting in experiment.settings(scale))
    }
    assert with_it == EXPERIMENTS.keys() - {"block_size", "sharing", "start", "chosen_start", "onset"}
    (setting, *_) = (
        setting for setting in EXPERIMENTS["accuracy"].settings(scale) if setting.labels["encoding"] == "CommonBasis8"
    )
    assert setting.options == {"position_encoding": "common_basis", "generator_block_size": 8}
    assert setting.paper is None


def test_figures_and_benchmark_have_it():
    styles = [_style(title, 0) for title in compared_encodings()]
    assert styles[-1]["color"] == COLOR
    assert len({style["color"] for style in styles}) == len({style["marker"] for style in styles}) == 6
    assert "common_basis8" in contestant_names()
    built = build_contestant("common_basis8", PRESETS["tiny-cifar"])
    assert built.config.position_encoding == "common_basis"


# ----- The registry -----


def test_every_encoding_has_a_page_entry():
    page = (Path(__file__).parents[2] / "docs" / "encodings.md").read_text()
    for name in POSITION_ENCODINGS.keys() - {"common_basis"}:
        assert f"| `{name}` |" in page


def test_committed_colors_stay():
    colors = {title: compared.color for title, compared in compared_encodings().items()}
    assert colors == {
        "absolute": "#0072B2",
        "VisionLLaMA": "#D55E00",
        "RoPE-Mixed": "#009E73",
        "LieRE8": "#CC79A7",
        "LieRE64": "#E69F00",
        "CommonBasis8": COLOR,
    }


def test_what_is_learned_is_derived():
    learns = {name for name, encoding in POSITION_ENCODINGS.items() if encoding.learns}
    assert learns == POSITION_ENCODINGS.keys() - {"visionllama", "none"}
    free = {name for name, encoding in POSITION_ENCODINGS.items() if encoding.has_free_generators}
    assert free == {"rope_mixed", "liere"}
