"""What happens on the page, without a browser; and `liere-hf app` on a socket with visitors."""

import importlib
import io
import json
import re
import socket
from types import ModuleType, SimpleNamespace

import httpx
import numpy as np
import pytest
from free_port import free_port
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image
from shown_models import CELL_SIZE, CHECKPOINT, GRID_SIZE, embedded_picture, write_arrows_model

from liere_hf.app import board
from liere_hf.app.limits import MAX_FILE_SIZE
from liere_hf.app.models import load_models
from liere_hf.data.data_sets.arrows import DIRECTIONS, GLYPHS, ArrowsTask
from liere_hf.errors import InputError
from liere_hf_cli.main import main

pytestmark = pytest.mark.xdist_group("preloaded")
TASK = ArrowsTask(GRID_SIZE, CELL_SIZE, 3, 2)
FASHION, ARROWS, LARGER = "liere-fashion-mnist", "arrows", "larger"


@pytest.fixture(scope="module")
def page() -> ModuleType:
    """Imported by tests, not with this file: gradio takes seconds, also of processes that run other tests."""
    return importlib.import_module("liere_hf.app.page")


@pytest.fixture(scope="module")
def names(tmp_path_factory) -> list[str]:
    directory = tmp_path_factory.mktemp("models")
    write_arrows_model(directory / ARROWS)
    write_arrows_model(directory / LARGER, grid_size=6)
    return [str(CHECKPOINT), str(directory / ARROWS), str(directory / LARGER)]


@pytest.fixture(scope="module")
def shown_page(page, names):
    return page.Page(load_models(names, use_cpu=True))


def test_labels_of_layouts_are_those_of_the_task():
    layouts, labels = TASK.layouts(0)
    assert [TASK.label_of(layout) for layout in layouts] == labels.tolist()
    images, _ = TASK.images(0, 3)
    np.testing.assert_array_equal(TASK.draw(layouts[:3]), images)


def test_clicks_lay_out_a_task(shown_page):
    """A Y in the middle whose base points right, and an arrow in the last cell of that row."""
    layout, _, sentence = shown_page.empty(ARROWS)
    assert "No single right answer" in sentence
    for column, row, glyph in ((2, 2, "Y, base right"), (4, 2, "arrow up"), (0, 0, "arrow left"), (1, 2, "A")):
        click = SimpleNamespace(x=(column + 0.5) / GRID_SIZE, y=(row + 0.01) / GRID_SIZE)
        layout, shown_board, sentence = shown_page.place(ARROWS, layout, glyph, click)
    assert "Right answer: up." in sentence
    assert {GLYPHS[glyph]: cell for cell, glyph in enumerate(layout) if glyph} == {
        "arrow left": 0,
        "A": 11,
        "Y, base right": 12,
        "arrow up": 14,
    }
    shown = board.board(TASK, layout)
    assert min(shown.size) >= board.BOARD_SIDE
    np.testing.assert_array_equal(embedded_picture(shown_board), np.asarray(shown))
    with Image.open(io.BytesIO(shown_page.take_layout(ARROWS, layout).content)) as picture:
        np.testing.assert_array_equal(np.asarray(picture), TASK.draw(np.array([layout]))[0])
    # At the very edges of the board.
    for share, cell in ((1, -1), (-1e-6, 0)):
        edge = SimpleNamespace(x=share, y=share)
        assert shown_page.place(ARROWS, layout, "B", edge)[0][cell] == GLYPHS.index("B")


def test_clicks_that_are_no_places_or_come_before_the_board_change_nothing(page, shown_page):
    nothing = (page.gr.skip(),) * 3
    layout, *_ = shown_page.empty(ARROWS)
    for x in (float("nan"), float("inf"), None, "1", [0.5], {}):
        assert shown_page.place(ARROWS, layout, "B", SimpleNamespace(x=x, y=0.5)) == nothing
    assert shown_page.place(ARROWS, layout, "B", SimpleNamespace(x=0.5)) == nothing
    assert shown_page.place(ARROWS, layout, "B", None) == nothing
    assert shown_page.place(ARROWS, layout, "B", SimpleNamespace(x=1e308, y=-1e308))[0][4] == GLYPHS.index("B")
    # The layout is still that of another model's task, or the model has none.
    click = SimpleNamespace(x=0.5, y=0.5)
    for title in (LARGER, FASHION):
        assert shown_page.place(title, layout, "B", click) == nothing
        assert shown_page.take_layout(title, layout) == page.gr.skip()


def test_examples_have_a_right_answer_and_are_answered(shown_page):
    layout, _, sentence = shown_page.example(ARROWS)
    assert re.match(rf"Right answer: ({'|'.join(DIRECTIONS)})\.", sentence)
    note, answers, maps, animation = shown_page.answer(ARROWS, 40, 3, shown_page.take_layout(ARROWS, layout))
    assert (note["visible"], animation["visible"]) == (False, False)
    assert set(answers) == set(DIRECTIONS)
    assert sum(answers.values()) == pytest.approx(1)
    assert min(maps.size) > 300


def test_another_first_model_brings_its_own_task(page, shown_page):
    layout, _, _, way = shown_page.adapt(ARROWS, (), "Spatial task")
    assert (len(layout), shown_page.take_adapted(ARROWS, layout, "Spatial task").title) == (25, "arrows.png")
    assert way == page.gr.update(choices=["Spatial task", "File", "Drawing"])
    assert shown_page.adapt(ARROWS, layout, "Spatial task")[0] == layout
    assert len(shown_page.adapt(LARGER, layout, "Spatial task")[0]) == 36
    layout, shown_board, _, way = shown_page.adapt(FASHION, layout, "Spatial task")
    assert (layout, shown_board) == ((), "")
    assert way == page.gr.update(choices=["File", "Drawing"], value="File")


@pytest.mark.parametrize(("title", "way"), [(ARROWS, "File"), (ARROWS, "Drawing"), (FASHION, "File")])
def test_a_file_that_comes_in_while_the_page_adapts_stays(page, shown_page, title, way):
    """Whatever is returned in its place is taken as the newer input."""
    layout, *_, ways = shown_page.adapt(title, (), way)
    assert "value" not in ways
    assert shown_page.take_adapted(title, layout, way) == page.gr.skip()


def test_drawings_are_strokes_of_any_colour(shown_page):
    assert shown_page.take_drawing(None, True) is None
    layer = Image.new("RGBA", (40, 40))
    layer.paste((200, 0, 0, 255), (10, 10, 30, 30))
    for is_white_on_black, ink in ((True, 255), (False, 0)):
        shown = shown_page.take_drawing({"layers": [layer], "composite": None}, is_white_on_black)
        with Image.open(io.BytesIO(shown.content)) as picture:
            assert (picture.getpixel((20, 20)), picture.getpixel((0, 0))) == (ink, 255 - ink)


def test_no_answer_is_a_sentence(shown_page, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    note, *nothing, animation = shown_page.answer(FASHION, 28, 4, shown_page.take_file(str(tmp_path / "broken.png")))
    assert note["value"] == "image broken.png cannot be read: it is not an image of a known format"
    assert note["visible"]
    assert (nothing, animation["visible"]) == ([None, None], False)
    gone = shown_page.take_file(str(tmp_path / "gone.png"))
    assert "gone.png cannot be read" in shown_page.answer(FASHION, 28, 4, gone)[0]["value"]
    assert str(tmp_path) not in shown_page.answer(FASHION, 28, 4, gone)[0]["value"]
    assert shown_page.answer(FASHION, 28, 4, None)[0]["visible"] is False


def test_sliders_have_the_ranges_of_a_model(shown_page):
    width, layer, head = shown_page.sliders(FASHION)
    assert [width[name] for name in ("minimum", "maximum", "step", "value")] == [4, 56, 4, 28]
    assert (layer["maximum"], layer["value"], head["maximum"]) == (4, 4, 8)


@pytest.mark.parametrize("options", [{"num_hidden_layers": 1}, {"num_attention_heads": 1}])
def test_models_with_nothing_to_choose(options, page, names, tmp_path):
    """Of one layer or one head; at first, or chosen on the page instead of others."""
    slim = str(write_arrows_model(tmp_path / "slim", **options))
    for shown in ([slim], [*names[:2], slim]):
        blocks = page.build_page(shown, use_cpu=True)
        client = visitor(page.launch(blocks, port=free_port()))
        client.predict(handle_file(CHECKPOINT.parents[1] / "docs" / "images" / "app.png"), api_name="/take_file")
        sliders = client.predict("slim", api_name="/sliders")
        width, layer, head = (each["value"] for each in sliders)
        assert ["num_hidden_layers" in options, "num_attention_heads" in options] == [
            not each["visible"] for each in sliders[1:]
        ]
        assert top(client.predict("slim", width, layer, api_name="/answer")) in DIRECTIONS
        assert client.predict("slim", width, layer, head, api_name="/offsets")
        blocks.close()


@pytest.mark.parametrize("checkpoint", sorted(path.parent.name for path in CHECKPOINT.parent.glob("*/config.json")))
def test_committed_checkpoints_have_pages(checkpoint, page):
    page.build_page([str(CHECKPOINT.parent / checkpoint)], use_cpu=True).close()


@pytest.fixture(scope="module")
def address(page, names):
    """Of the page with the first two models, on a socket."""
    blocks = page.build_page(names[:2], use_cpu=True)
    yield page.launch(blocks, port=free_port())
    blocks.close()


def visitor(address: str) -> Client:
    return Client(address, verbose=False, analytics_enabled=False)


def top(result) -> str:
    return result[1]["label"]


@pytest.mark.end_to_end
def test_two_visitors_at_once_have_answers_of_their_own(address, trousers, noise):
    """Each one's file and layout stay, whatever the other one does in between and at the same time."""
    ann, ben = visitor(address), visitor(address)
    ann.predict(handle_file(trousers), api_name="/take_file")
    ben.predict(handle_file(noise), api_name="/take_file")
    alone = {one: one.predict(FASHION, 28, 4, api_name="/answer")[1] for one in (ann, ben)}
    assert alone[ann]["label"] == "Trouser"
    assert alone[ann] != alone[ben]
    jobs = [(one, one.submit(FASHION, 28, layer, api_name="/answer")) for layer in (1, 4) for one in (ann, ben)]
    for one, job in jobs:
        assert job.result(timeout=60)[1] == alone[one]


def test_broken_files_are_answered_by_a_sentence(address, tmp_path):
    one = visitor(address)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    one.predict(handle_file(tmp_path / "broken.png"), api_name="/take_file")
    note, _, maps, _ = one.predict(FASHION, 28, 4, api_name="/answer")
    assert note["value"] == "image broken.png cannot be read: it is not an image of a known format"
    assert not maps
    one.predict(ARROWS, api_name="/example")


@pytest.mark.parametrize("path", ["/etc/hostname", "http://127.0.0.1/secret.png", "https://example.com/picture.png"])
@pytest.mark.parametrize("endpoint", ["take_file", "take_drawing"])
def test_only_uploads_are_read(address, path, endpoint):
    """Neither files of the server by name nor addresses."""
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    data = [file] if endpoint == "take_file" else [{"background": None, "layers": [file], "composite": None}, True]
    started = httpx.post(f"{address}gradio_api/call/{endpoint}", json={"data": data}).json()
    with httpx.stream("GET", f"{address}gradio_api/call/{endpoint}/{started['event_id']}") as events:
        answer = "".join(events.iter_text())
    assert "event: error" in answer
    assert "event: complete" not in answer


def test_files_of_the_server_are_not_served(address):
    for path in ("/etc/hostname", str(CHECKPOINT / "config.json"), "pyproject.toml", "../pyproject.toml"):
        assert httpx.get(f"{address}gradio_api/file={path}").status_code in (403, 404)


def test_too_large_an_upload_is_refused(address):
    content = io.BytesIO(bytes(MAX_FILE_SIZE + 1))
    response = httpx.post(f"{address}gradio_api/upload", files={"files": ("huge.png", content)}, timeout=60)
    assert response.status_code == 413


def test_values_beyond_the_ranges_and_unknown_models(address, trousers):
    one = visitor(address)
    one.predict(handle_file(trousers), api_name="/take_file")
    for values in ((FASHION, 280_000, 4), (FASHION, 28, 99), ("/etc", 28, 4)):
        with pytest.raises(AppError):
            one.predict(*values, api_name="/answer")


def test_the_page_contacts_nobody(address):
    """Neither fonts, scripts nor telemetry of others are named in what the browser gets first."""
    html = httpx.get(address).text
    config = json.loads(httpx.get(f"{address}config").text)
    assert not re.search(r"<(script|link)[^>]*(src|href)=[\"']https?:", html)
    assert config["analytics_enabled"] is False


def test_a_port_in_use_is_one_sentence(page):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(InputError, match=f"the page cannot be served at 127.0.0.1, port {port}: Address already"):
            page.serve([str(CHECKPOINT)], port=port)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["missing"], "model missing"),
        ([], "no model is given, and "),
        ([CHECKPOINT, "--host", "256.0.0.1", "--port", "7"], "the page cannot be served at 256.0.0.1, port 7: "),
        ([CHECKPOINT, "--port", "70000"], "port is 70000, allowed is 1 to 65535"),
    ],
    ids=["missing model", "no model", "no such host", "no such port"],
)
def test_bad_input_is_one_sentence(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SystemExit) as exit_:
        main(["app", *map(str, words)])
    error = capsys.readouterr().err
    assert exit_.value.code == 2
    assert error.splitlines()[-1].startswith(f"liere-hf app: error: {message}")
    assert "Traceback" not in error
    assert not [*tmp_path.iterdir()]
