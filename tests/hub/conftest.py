import shutil
from pathlib import Path

import pytest
import torch
from command_line import TOKEN, CommandLine
from free_port import free_port
from hub_server import HubServer, client_environment
from preloaded import EVERYTHING, PreloadedPrograms
from tiny_run import TWO_STEPS, as_flags

from liere_hf import LiereViTConfig, LiereViTForVideoClassification
from liere_hf.configuration import parse_recipe
from liere_hf.conversion import ConversionOptions, convert, export_state_dict
from liere_hf.training.run import train


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """A finished liere-hf train run of two steps. Do not modify it: make a copy."""
    directory = tmp_path_factory.mktemp("trained") / "run"
    train(*parse_recipe("digits", as_flags(TWO_STEPS | {"output_dir": directory})))
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
        generator_init="uniform",
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


@pytest.fixture(scope="session")
def hub_client(tmp_path_factory):
    """Programs of a Hub client, and their environment. The Hubs of all test files listen at one port, since programs
    take seconds to start."""
    environment = client_environment(free_port(), home=tmp_path_factory.mktemp("client") / "home")
    programs = PreloadedPrograms(environment, (*EVERYTHING, "short_waits"))
    yield programs, environment
    programs.close()


@pytest.fixture(scope="module")
def server(hub_client, tmp_path_factory):
    """A Hub with one user, who may write to `org`."""
    port = int(hub_client[1]["HF_ENDPOINT"].rpartition(":")[2])
    with HubServer(tmp_path_factory.mktemp("hub"), port=port) as server:
        server.add_user("ann", TOKEN, orgs=[("org", "write")])
        yield server


@pytest.fixture(scope="module")
def command_line(hub_client):
    """liere-hf as a client of that Hub, without a default token."""
    command_line = CommandLine(*hub_client)
    yield command_line
    command_line.close()
