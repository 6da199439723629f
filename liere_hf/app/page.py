"""The page: ways of input on top, and below them a column for each of two models."""

import base64
import io
import math
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
import numpy as np
from gradio.components import Component
from PIL import Image

from ..configuration.allowed_values import require_allowed
from ..data.data_sets.arrows import GLYPHS
from ..errors import InputError, sentence
from . import board
from .limits import MAX_FILE_SIZE
from .models import TOP_K, ShownModel, load_models

# Visitors that wait; more are told to come back.
MAX_WAITING = 64
# Seconds: how often the files of visitors are looked at, and how long they stay.
CLEANING = (600, 3600)
DRAWING_SIDE = 280
# Ways of input.
WAYS = BOARD, FILE, DRAWING = ("Spatial task", "File", "Drawing")
# No web fonts: the page also works offline.
FONTS = {"font": ("system-ui", "sans-serif"), "font_mono": ("ui-monospace", "monospace")}
# Models compute in turn, so that the maps of one visitor do not take the memory of the next one's. What a visitor
# changes meanwhile is computed next, the last change only.
IN_TURN = {"concurrency_id": "models", "concurrency_limit": 1, "trigger_mode": "always_last"}
# Of the board every click counts, in its order, also while an earlier one is under way.
EVERY_CLICK = {
    "concurrency_id": "board",
    "concurrency_limit": 1,
    "trigger_mode": "multiple",
    "show_progress": "hidden",
}
# gradio's sliders are released by pointers only. Keys release them here, too.
RELEASE_BY_KEYS = """
() => document.addEventListener("keyup", ({key, target}) => {
    if (target.type === "range" && /^(Arrow|Page|Home$|End$)/.test(key))
        target.dispatchEvent(new PointerEvent("pointerup", {bubbles: true}));
})
"""
# Clicks on the board, which is not a gr.Image: that one ignores clicks while a new picture loads. The element stays
# while its content is replaced.
CLICKED_PLACE = """
element.addEventListener("click", ({clientX, clientY}) => {
    const box = element.querySelector("img")?.getBoundingClientRect();
    if (box)
        trigger("click", {x: (clientX - box.left) / box.width, y: (clientY - box.top) / box.height});
});
"""


class Shown(NamedTuple):
    """The input of a visitor: the bytes or the path of a file, and what it is called."""

    content: bytes | None
    path: str | None
    title: str


class Page:
    """What happens on the page. All that belongs to a visitor is in arguments and results: gradio keeps it apart."""

    def __init__(self, models: Mapping[str, ShownModel]):
        self.models = models

    def adapt(self, title: str, layout: board.Layout, way: str) -> tuple[board.Layout, str, str, dict]:
        """What a new first model changes: the board, if its spatial task is another one, and ways of input."""
        task, ways = self.models[title].task, self.ways(title)
        another_way = {} if way in ways else {"value": ways[0]}
        if task is None:
            laid_out = (), "", ""
        else:
            laid_out = self.lay_out(title, layout if self.fits(title, layout) else board.example(task))
        return *laid_out, gr.update(choices=ways, **another_way)

    def take_adapted(self, title: str, layout: board.Layout, way: str) -> Shown | dict:
        """The board as input, unless it comes another way: a file that came in while the page adapted stays."""
        return self.take_layout(title, layout) if way == BOARD else gr.skip()

    def ways(self, title: str) -> list[str]:
        """Ways of input that a model has."""
        model = self.models[title]
        has = {BOARD: model.task is not None, FILE: True, DRAWING: model.column == "image"}
        return [way for way in WAYS if has[way]]

    def groups(self, chosen: str) -> list[dict]:
        return [gr.update(visible=way == chosen) for way in WAYS]

    def example(self, title: str) -> tuple[board.Layout, str, str]:
        return self.lay_out(title, board.example(self.models[title].task))

    def empty(self, title: str) -> tuple[board.Layout, str, str]:
        return self.lay_out(title, board.empty(self.models[title].task))

    def place(
        self, title: str, layout: board.Layout, glyph: str, click: gr.EventData
    ) -> tuple[board.Layout | dict, str | dict, str | dict]:
        """Nothing changes if the click came before the board of another model, or is not a place on the board."""
        place = [getattr(click, name, None) for name in ("x", "y")]
        is_place = all(isinstance(share, int | float) and math.isfinite(share) for share in place)
        if not (is_place and self.fits(title, layout)):
            return gr.skip(), gr.skip(), gr.skip()
        return self.lay_out(title, board.placed(self.models[title].task, layout, place, glyph))

    def fits(self, title: str, layout: board.Layout) -> bool:
        """Whether a layout is one of the model's spatial task."""
        task = self.models[title].task
        return task is not None and len(layout) == task.grid_size**2

    def lay_out(self, title: str, layout: board.Layout) -> tuple[board.Layout, str, str]:
        """A layout, the board that shows it, and its right answer."""
        task = self.models[title].task
        return layout, _board(board.board(task, layout)), board.solution(task, layout)

    def take_layout(self, title: str, layout: board.Layout) -> Shown | dict:
        if not self.fits(title, layout):
            return gr.skip()
        return Shown(_png(board.picture(self.models[title].task, layout)), None, "arrows.png")

    def take_file(self, path: str | None) -> Shown | None:
        return None if path is None else Shown(None, str(path), Path(path).name)

    def take_drawing(self, drawing: dict[str, Any] | None, is_white_on_black: bool) -> Shown | None:
        """The strokes, whatever their colour."""
        layers = [] if drawing is None else drawing["layers"]
        if not layers:
            return None
        ink = np.max([np.asarray(layer)[..., -1] for layer in layers], axis=0)
        return Shown(_png(Image.fromarray(ink if is_white_on_black else 255 - ink)), None, "drawing.png")

    def sliders(self, title: str) -> tuple[dict, dict, dict]:
        """Ranges of size, layer and head: at first the training size, the whole model and the first head."""
        model = self.models[title]
        return (
            gr.update(**_widths(model)),
            gr.update(**_range(1, model.num_layers, model.num_layers)),
            gr.update(**_range(1, model.num_heads, 1)),
        )

    def answer(
        self, title: str, width: float, layer: float, shown: Shown | None
    ) -> tuple[dict, dict[str, float] | str | None, Image.Image | None, dict]:
        """A sentence where there is no answer; else the answers, the maps, and for clips an animation."""
        if shown is None:
            return _note(""), None, None, _animation(None)
        model = self.models[title]
        try:
            file = {"bytes": shown.content, "path": shown.path}
            found = model.explain(file, shown.title, int(width), int(layer))
        except InputError as error:
            return _note(sentence(error)), None, None, _animation(None)
        except (ImportError, MemoryError) as error:
            return _note(f"{shown.title} cannot be read: {error or 'no memory'}"), None, None, _animation(None)
        answers = dict(found.prediction.values)
        if not model.gives_shares:
            answers = ", ".join(f"{name} {value:.4g}" for name, value in answers.items())
        return _note(""), answers, _image(found.figure), _animation(found.animation)

    def offsets(self, title: str, width: float, layer: float, head: float) -> Image.Image | None:
        """The figure of scores by offset; None for a model without positions."""
        try:
            return _image(self.models[title].offsets(int(width), int(layer), int(head)).png())
        except InputError:
            return None


def build_page(names: Sequence[str] = (), use_cpu: bool = False) -> gr.Blocks:
    """The page for some models, the first two of them side by side.

    Args:
        names: directories or Hub ids; by default the committed checkpoints of the clone that this is run in.
        use_cpu: also where there is a GPU.

    Raises:
        InputError: a model cannot be read, or none is given outside of a clone.
    """
    page = Page(load_models(names, use_cpu))
    titles = [*page.models]
    with gr.Blocks(title="LieRE", analytics_enabled=False, delete_cache=CLEANING, fill_width=True) as blocks:
        gr.Markdown("## What a model answers, where it looks, and what its rotations do")
        shown = gr.State(None)
        ways = gr.Column()
        with gr.Row():
            columns = [_Column(page, title) for title in titles[:2]]
        with ways:
            _add_ways(page, blocks, columns[0].model, shown)
        for column in columns:
            column.listen(blocks, shown)
    return blocks.queue(max_size=MAX_WAITING)


def serve(names: Sequence[str] = (), host: str = "127.0.0.1", port: int | None = None, use_cpu: bool = False) -> None:
    """Serve the page until an interruption, and print its address.

    Args:
        names: as of `build_page`.
        host: address to listen at; others than 127.0.0.1 are open to other machines.
        port: the first free one from 7860 on by default.
        use_cpu: as of `build_page`.

    Raises:
        InputError: as `build_page`, or host and port cannot be used.
    """
    require_allowed({"port": port})
    _require_address(host, port)
    blocks = build_page(names, use_cpu)
    address = launch(blocks, host, port)
    print(f"The page is at {address} (Ctrl+C ends it).", flush=True)
    blocks.block_thread()


def launch(blocks: gr.Blocks, host: str = "127.0.0.1", port: int | None = None) -> str:
    """Start to serve a page, offline and without access to files of this machine.

    Returns:
        Its address.
    """
    _, address, _ = blocks.launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        inbrowser=False,
        max_file_size=MAX_FILE_SIZE,
        allowed_paths=[],
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        footer_links=[],
        theme=gr.themes.Default(**FONTS),
        js=RELEASE_BY_KEYS,
    )
    return address


def _require_address(host: str, port: int | None) -> None:
    """
    Raises:
        InputError: this machine does not have the address, or the port is taken.
    """
    try:
        with socket.create_server((host, port or 0)):
            pass
    except (OSError, OverflowError) as error:
        where = host if port is None else f"{host}, port {port}"
        raise InputError(
            f"the page cannot be served at {where}: {getattr(error, 'strerror', None) or error}"
        ) from error


class _Column:
    """What the page shows of one model."""

    def __init__(self, page: Page, title: str):
        self.page = page
        model = page.models[title]
        with gr.Column():
            self.model = gr.Dropdown([*page.models], value=title, label="Model", filterable=False)
            with gr.Row():
                self.width = gr.Slider(label="Size, in pixels", **_widths(model))
                self.layer = gr.Slider(label="After layer", **_range(1, model.num_layers, model.num_layers))
                self.head = gr.Slider(label="Head of the rotations", **_range(1, model.num_heads, 1))
            self.note = gr.Textbox(show_label=False, visible=False, interactive=False, elem_classes="note")
            self.answers = gr.Label(label="Answer", num_top_classes=TOP_K, elem_classes="answer")
            self.maps = _figure("Where it looks", "maps")
            self.animation = gr.HTML(visible=False)
            self.offsets = _figure("What an offset does to scores", "offsets")

    def listen(self, blocks: gr.Blocks, shown: gr.State) -> None:
        answer = (
            self.page.answer,
            [self.model, self.width, self.layer, shown],
            [self.note, self.answers, self.maps, self.animation],
        )
        sliders = [self.width, self.layer, self.head]
        offsets = (self.page.offsets, [self.model, *sliders], self.offsets)
        gr.on([shown.change, self.width.release, self.layer.release], *answer, api_name="answer", **IN_TURN)
        gr.on([blocks.load, *(slider.release for slider in sliders)], *offsets, api_name="offsets", **IN_TURN)
        switched = self.model.change(self.page.sliders, self.model, sliders, api_name="sliders")
        for shows in (answer, offsets):
            switched.then(*shows, api_name=False, **IN_TURN)


def _add_ways(page: Page, blocks: gr.Blocks, model: gr.Dropdown, shown: gr.State) -> None:
    """Ways of input: the spatial task, a file, a drawing."""
    ways = page.ways(model.value)
    way = gr.Radio(ways, value=ways[0], label="Input", elem_id="way")
    groups = {name: gr.Column(visible=name == way.value) for name in WAYS}
    laid_out = _add_board(page, groups[BOARD], model, shown)
    with groups[FILE]:
        file = _uploads_only(gr.File(label="A picture, clip or volume, as the model takes them", elem_id="file"))
        file.change(page.take_file, file, shown, api_name="take_file")
    with groups[DRAWING]:
        drawing = gr.ImageEditor(
            label="Draw",
            type="pil",
            sources=(),
            transforms=(),
            layers=False,
            fixed_canvas=True,
            canvas_size=(DRAWING_SIDE, DRAWING_SIDE),
            height=DRAWING_SIDE + 120,
            brush=gr.Brush(default_size=24, colors=["#303030"], color_mode="fixed"),
            elem_id="drawing",
        )
        is_white_on_black = gr.Checkbox(True, label="White on black, as in Fashion-MNIST")
        ask = gr.Button("Ask", variant="primary")
        ask.click(page.take_drawing, [_uploads_only(drawing), is_white_on_black], shown, api_name="take_drawing")
    way.change(page.groups, way, [*groups.values()], show_progress="hidden", api_name=False)
    now = [model, laid_out[0], way]
    in_order = {"concurrency_id": EVERY_CLICK["concurrency_id"], "concurrency_limit": 1}
    adapted = gr.on([blocks.load, model.change], page.adapt, now, [*laid_out, way], api_name="adapt", **in_order)
    # An event of its own, whose `way` is what the visitor has chosen by then.
    adapted.then(page.take_adapted, now, shown, show_progress="hidden", api_name=False)


def _add_board(page: Page, group: gr.Column, model: gr.Dropdown, shown: gr.State) -> list[Component]:
    """The spatial task: layout, board and right answer."""
    layout = gr.State(())
    with group, gr.Row():
        canvas = gr.HTML(container=True, js_on_load=CLICKED_PLACE, elem_id="board")
        with gr.Column():
            glyph = gr.Radio(list(GLYPHS), value=GLYPHS[1], label="A click on a cell puts", elem_id="glyph")
            solution = gr.Markdown()
            with gr.Row():
                clear, another = gr.Button("Clear"), gr.Button("Another example")
    laid_out = [layout, canvas, solution]
    for event in (
        clear.click(page.empty, model, laid_out, api_name="empty", **EVERY_CLICK),
        another.click(page.example, model, laid_out, api_name="example", **EVERY_CLICK),
        canvas.click(page.place, [model, layout, glyph], laid_out, api_name=False, **EVERY_CLICK),
    ):
        event.then(page.take_layout, [model, layout], shown, api_name=False, **EVERY_CLICK)
    return laid_out


def _uploads_only(component: Component) -> Component:
    """Let a component read what its visitor uploads, and nothing else: gradio's also fetch addresses.

    A subclass would do, but gradio writes a file beside the module of each.
    """
    keep = component.move_resource_to_block_cache

    def keep_upload(path: str | Path | None) -> str | None:
        if str(path).lower().startswith(("http:", "https:")):
            raise gr.Error("only uploaded files are read here, no addresses")
        return keep(path)

    component.move_resource_to_block_cache = keep_upload
    return component


def _figure(label: str, kind: str) -> gr.Image:
    return gr.Image(
        label=label,
        show_label=False,
        type="pil",
        format="png",
        interactive=False,
        buttons=["fullscreen"],
        elem_classes=kind,
    )


def _widths(model: ShownModel) -> dict[str, Any]:
    return _range(model.patch_width, model.max_width, model.training_width, model.patch_width)


def _range(first: int, last: int, value: int, step: int = 1) -> dict[str, Any]:
    """Of a slider, hidden where there is nothing to choose: Gradio takes no range of a single value."""
    return {
        "minimum": first,
        "maximum": max(last, first + step),
        "step": step,
        "value": value,
        "visible": first < last,
    }


def _note(text: str) -> dict[str, Any]:
    return gr.update(value=text, visible=bool(text))


def _animation(gif: bytes | None) -> dict[str, Any]:
    html = "" if gif is None else _embedded(gif, "gif", 'alt="The clip, with rollout and relevance"')
    return gr.update(value=html, visible=bool(html))


def _board(picture: Image.Image) -> str:
    # Its size is known before it is decoded, and a click whose release meets the next picture counts.
    style = "max-width: none; pointer-events: none"
    attributes = f'alt="The board" width="{picture.width}" height="{picture.height}" style="{style}"'
    return _embedded(_png(picture), "png", attributes)


def _embedded(content: bytes, kind: str, attributes: str) -> str:
    """An image as a part of the page."""
    return f'<img {attributes} src="data:image/{kind};base64,{base64.b64encode(content).decode()}">'


def _png(picture: Image.Image) -> bytes:
    content = io.BytesIO()
    picture.save(content, format="PNG")
    return content.getvalue()


def _image(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png))
