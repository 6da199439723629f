"""Names of models, and no waiting for a Hub that is out of reach."""

import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from free_port import free_port
from huggingface_hub import constants, is_offline_mode
from transformers import AutoConfig

from liere_hf import hub_access
from liere_hf.errors import InputError
from liere_hf.hub_access import hub_or_cache


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere", "~/nowhere", "a/b/c", "nowhere/", __file__])
def test_paths_are_no_ids(name):
    with pytest.raises(InputError, match="is not a directory"), hub_or_cache("model", name):
        pass


@pytest.mark.parametrize("name", ["a b", "org/na--me", "über"])
def test_names_that_no_repository_has(name):
    with pytest.raises(InputError, match="is neither a directory nor the id of a repository"), hub_or_cache("", name):
        pass


@pytest.fixture
def unreachable(monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{free_port()}")
    hub_access._is_reachable.cache_clear()


def test_without_a_connection_the_cache_is_read_at_once(unreachable):
    start = time.monotonic()
    message = r"model org/name is not .* cache, and http://127.0.0.1:\d+ cannot be reached$"
    with pytest.raises(InputError, match=message), hub_or_cache("model", "org/name"):
        assert is_offline_mode()
        AutoConfig.from_pretrained("org/name")
    assert time.monotonic() - start < 5
    assert not is_offline_mode()


def test_with_a_connection_nothing_changes(monkeypatch):
    """Any answer will do, even that there is no such page."""

    class NoSuchPage(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_error(404)

        def log_message(self, *arguments):
            pass

    with HTTPServer(("127.0.0.1", 0), NoSuchPage) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        hub_access._is_reachable.cache_clear()
        with hub_or_cache("model", "org/name"):
            assert not is_offline_mode()
        server.shutdown()


def test_offline_by_choice(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="and HF_HUB_OFFLINE is set"), hub_or_cache("model", "org/name"):
        AutoConfig.from_pretrained("org/name")
    assert is_offline_mode()
