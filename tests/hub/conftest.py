import shutil
from pathlib import Path

import pytest
import torch
from command_line import CommandLine
from hub_server import HubServer
from tiny_run import TINY_FLAGS, TOKEN

from liere_hf import LiereViTConfig, LiereViTForVideoClassification
from liere_hf.configuration import parse_recipe
from liere_hf.conversion import ConversionOptions, convert, export_state_dict
from liere_hf.training.run import train


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """A finished liere-hf train run of two steps. Do not modify it: make a copy."""
    directory = tmp_path_factory.mktemp("trained") / "run"
    train(*parse_recipe("digits", [*TINY_FLAGS, "--output_dir", str(directory)]))
    return directory


@pytest.fixture(scope="session")
def converted(tmp_path_factory) -> Path:
    """A video model written by liere-hf convert. Do not modify it: make a copy."""
    torch.manual_seed(0)
    config = LiereViTConfig(
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=1,
        head_dim=64,
        intermediate_size=32,
        image_size=[4, 16, 16],
        patch_size=[2, 8, 8],
        position_mode="linspace",
        share_generators_across_layers=True,
        num_labels=3,
    )
    directory = tmp_path_factory.mktemp("converted")
    torch.save(export_state_dict(LiereViTForVideoClassification(config)), directory / "authors.ckpt")
    options = ConversionOptions(image_size=[4, 16, 16], patch_size=[2, 8, 8])
    convert(str(directory / "authors.ckpt"), directory / "model", "liere", options)
    return directory / "model"


@pytest.fixture
def run_dir(trained, tmp_path) -> Path:
    """A copy of the run that tests may modify."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A Hub with one user, who may write to `org`."""
    with HubServer(tmp_path_factory.mktemp("hub")) as server:
        server.add_user("ann", TOKEN, orgs=[("org", "write")])
        yield server


@pytest.fixture(scope="module")
def command_line(server, tmp_path_factory):
    """liere-hf as a client of that Hub, without a default token."""
    command_line = CommandLine(server.environment(home=tmp_path_factory.mktemp("home")))
    yield command_line
    command_line.close()
