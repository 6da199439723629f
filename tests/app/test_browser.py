"""`liere-hf app` as its users meet it: the command, and a real browser."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from free_port import free_port
from playwright.sync_api import BrowserContext, Page, expect, sync_playwright
from preloaded import preloaded
from shown_models import CHECKPOINT, SPATIAL, embedded_picture

from liere_hf.app import board
from liere_hf.app.limits import MAX_FILE_SIZE
from liere_hf.data.data_sets.arrows import ArrowsTask

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.xdist_group("preloaded"),
    pytest.mark.end_to_end,
    pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt-get install chromium"),
]
SECONDS = 1000
# As in training: a Y, seven arrows, five letters, and last the arrow that the Y's base points at. By (row, column).
LAYOUT = {
    (4, 4): "Y, base down",
    (2, 2): "arrow left",
    (4, 6): "arrow up",
    (6, 0): "arrow up",
    (0, 1): "arrow right",
    (8, 8): "arrow right",
    (1, 7): "arrow down",
    (5, 1): "arrow down",
    (0, 5): "A",
    (3, 3): "B",
    (6, 6): "C",
    (8, 2): "D",
    (2, 8): "E",
    (7, 4): "arrow left",
}


@pytest.fixture(scope="module")
def address():
    port = free_port()
    command = [preloaded("liere-hf"), "app", str(CHECKPOINT), str(SPATIAL), "--port", str(port), "--use_cpu"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == f"The page is at http://127.0.0.1:{port}/ (Ctrl+C ends it).\n"
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        process.wait(timeout=30)
        process.stdout.close()


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        # Chromium's sandbox does not work as root, as in containers.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def context(browser):
    """Shared, so that the browser reads and compiles the page's scripts once. Each page is a visitor of its own."""
    context = browser.new_context(viewport={"width": 1400, "height": 1600})
    context.set_default_timeout(60 * SECONDS)
    expect.set_options(timeout=60 * SECONDS)
    yield context
    context.close()


@pytest.fixture
def page(context, address):
    yield from visit(context, address)


@pytest.fixture
def another_page(context, address):
    yield from visit(context, address)


def visit(context: BrowserContext, address: str):
    page = context.new_page()
    page.asked = []
    page.on("request", lambda request: page.asked.append(request.url))
    page.goto(address)
    page.locator("#file").wait_for()
    yield page
    page.close()


def upload(page: Page, path: Path) -> None:
    cross = page.locator("#file").get_by_label("Clear")
    if cross.count():
        cross.click()
    page.locator("#file input[type=file]").set_input_files(path)


def answer(page: Page, column: int):
    return page.locator(".answer").nth(column)


def maps(page: Page, column: int):
    return page.locator(".maps").nth(column).locator("img")


def offsets(page: Page, column: int):
    return page.locator(".offsets").nth(column).locator("img")


def choose(page: Page, column: int, title: str) -> None:
    page.get_by_label("Model").nth(column).click()
    page.get_by_role("option", name=title).click()


def test_a_picture_another_layer_and_another_model(page, address, trousers):
    upload(page, trousers)
    expect(answer(page, 0)).to_contain_text("Trouser")
    expect(answer(page, 1)).to_contain_text(re.compile("up|right|down|left"))
    whole = maps(page, 0).get_attribute("src")
    layer = page.get_by_label("number input for After layer").first
    layer.fill("1")
    layer.blur()
    expect(maps(page, 0)).not_to_have_attribute("src", whole)
    choose(page, 1, "liere-fashion-mnist")
    expect(answer(page, 1)).to_contain_text("Trouser")
    # Neither fonts nor telemetry of others.
    assert {url.split("/")[2] for url in page.asked if url.startswith("http")} == {address.split("/")[2]}


def test_a_task_laid_out_by_clicks_is_answered_right(page):
    """At first the Y points down, at an arrow to the left. Then it is turned, and then another arrow is put there."""
    choose(page, 0, SPATIAL.name)
    page.locator("#way").get_by_text("Spatial task").click()
    expect(page.get_by_text("Right answer: ")).to_be_visible()
    page.get_by_role("button", name="Clear").last.click()
    expect(page.get_by_text("No single right answer")).to_be_visible()
    for cells, truth in ((LAYOUT, "left"), ({(4, 4): "Y, base right"}, "up"), ({(4, 6): "arrow down"}, "down")):
        fill_cells(page, cells)
        expect(page.get_by_text(f"Right answer: {truth}.")).to_be_visible()
        for column in (0, 1):
            expect(answer(page, column).get_by_test_id("label-output-value")).to_have_text(truth)


def test_no_click_of_many_is_lost(page):
    """Every second cell is filled, by clicks that follow at once. Then the last five are emptied."""
    task = ArrowsTask(9, 8, 7, 5)
    choose(page, 0, SPATIAL.name)
    page.locator("#way").get_by_text("Spatial task").click()
    expect(page.get_by_text("Right answer: ")).to_be_visible()
    page.get_by_role("button", name="Clear").last.click()
    expect(page.get_by_text("No single right answer")).to_be_visible()
    cells = [divmod(cell, 9) for cell in range(0, 81, 2)]
    layout = board.empty(task)
    for chosen, glyph in ((cells, "arrow left"), (cells[-5:], "empty")):
        fill_cells(page, dict.fromkeys(chosen, glyph))
        for row, column in chosen:
            layout = board.placed(task, layout, ((column + 0.5) / 9, (row + 0.5) / 9), glyph)
    expected, shown = np.asarray(board.board(task, layout)), page.locator("#board img")
    for _ in range(60):
        if np.array_equal(embedded_picture(shown.get_attribute("src")), expected):
            break
        page.wait_for_timeout(1 * SECONDS)
    np.testing.assert_array_equal(embedded_picture(shown.get_attribute("src")), expected)


def fill_cells(page: Page, cells: dict[tuple[int, int], str]) -> None:
    """Click without waiting for the page in between: it loses no click."""
    shown, chosen = page.locator("#board img"), None
    for (row, column), glyph in cells.items():
        if glyph != chosen:
            page.locator("#glyph").get_by_text(glyph, exact=True).click()
            chosen = glyph
        box = shown.bounding_box()
        x, y = box["x"] + (column + 0.5) / 9 * box["width"], box["y"] + (row + 0.5) / 9 * box["height"]
        page.mouse.click(x, y)


def test_sliders_by_keyboard_and_by_pointer(page, trousers):
    """An arrow key is as good as a pointer, and neither a held key nor a pointer on its way computes anything."""
    upload(page, trousers)
    expect(answer(page, 0)).to_contain_text("Trouser")
    page.wait_for_timeout(5 * SECONDS)
    layer = page.get_by_label("range slider for After layer").first
    head = page.get_by_label("range slider for Head of the rotations").first
    for slider, picture, value in ((layer, maps(page, 0), "3"), (head, offsets(page, 0), "2")):
        before, asked = picture.get_attribute("src"), num_asked(page)
        slider.focus()
        page.keyboard.down("ArrowLeft" if value == "3" else "ArrowRight")
        expect(slider).to_have_value(value)
        assert num_asked(page) == asked
        page.keyboard.up("ArrowLeft" if value == "3" else "ArrowRight")
        expect(picture).not_to_have_attribute("src", before)
    page.wait_for_timeout(5 * SECONDS)
    before, asked, box = maps(page, 0).get_attribute("src"), num_asked(page), layer.bounding_box()
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 0.6 * box["width"], y)
    page.mouse.down()
    page.mouse.move(box["x"] + 2, y, steps=20)
    assert num_asked(page) == asked
    page.mouse.up()
    expect(layer).to_have_value("1")
    expect(maps(page, 0)).not_to_have_attribute("src", before)


def num_asked(page: Page) -> int:
    """Computations that the page has asked for."""
    return sum("/queue/join" in url for url in page.asked)


def test_a_drawing_is_answered(page):
    page.locator("#way").get_by_text("Drawing").click()
    canvas = page.locator("#drawing canvas").first
    canvas.wait_for()
    page.wait_for_timeout(2 * SECONDS)
    brush = page.locator("#drawing").get_by_label("Brush").first
    if brush.count():
        brush.click()
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y - 60)
    page.mouse.down()
    page.mouse.move(x, y + 60, steps=10)
    page.mouse.up()
    page.get_by_role("button", name="Ask").click()
    expect(answer(page, 0)).to_contain_text("%")


def test_broken_and_huge_files_get_a_sentence(page, trousers, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    upload(page, tmp_path / "broken.png")
    sentence = "image broken.png cannot be read: it is not an image of a known format"
    expect(page.locator(".note textarea, .note input").first).to_have_value(sentence)
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(MAX_FILE_SIZE + 1)
    upload(page, tmp_path / "huge.png")
    expect(page.get_by_text("exceed the maximum allowed size of 100")).to_be_visible()


def test_two_visitors_at_once(page, another_page, trousers, noise):
    choose(another_page, 1, "liere-fashion-mnist")
    for visitor, path in ((page, trousers), (another_page, noise)):
        upload(visitor, path)
    expect(answer(page, 0)).to_contain_text("Trouser")
    expect(answer(another_page, 0)).to_contain_text("%")
    expect(answer(page, 0)).to_contain_text("Trouser")
    expect(another_page.locator("#file")).to_contain_text("noise")
    expect(page.locator("#file")).to_contain_text("trousers")
