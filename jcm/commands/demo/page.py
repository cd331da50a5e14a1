"""The layout of the page, and the action of each button."""

import dataclasses
import hashlib
import html
import io
import os
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from jcm.commands.demo.actions import ANY, Actions, Common, Shown
from jcm.commands.demo.controls import Drawing, Page, checked
from jcm.commands.demo.folder import Folder
from jcm.runtime import files, memory
from jcm.runtime.errors import JcmError, printable

WAITING = 20
"""The most calls that wait while another runs; more are turned away."""

# The largest values of the controls.
_STEPS, _POINTS, _COUNT, _SEED = 8, 40, 16, 2**32 - 1
# One call runs at a time.
_ONE: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}
# At most this many characters of the name of a class are shown.
_NAME = 60
# A tab: the text of its button, the action, and the controls that only it has.
_Tab = tuple[str, Callable[..., Shown], list[Any]]
_FAILED = "<p role='alert' style='color: var(--error-text-color, #b91c1c)'>{}</p>"


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where the controls of a tab are.

    Attributes:
      common: the controls that all tabs share.
      problem: shows the error of the last action of the tab.
      folder: of the uploads and results.
    """

    common: list[Any]
    problem: gr.HTML
    folder: Folder


def build(actions: Actions, folder: Folder) -> Page:
    """Builds the page of a model; a diffusion model has only the tab to sample.

    Args:
      actions: of the model.
      folder: of the uploads and results, which gradio uses too.
    """
    model, names = actions.model, actions.model.class_names
    with Page(title="jcm", analytics_enabled=False) as page:
        gr.Markdown(f"# jcm\n{_about(actions)}")
        with gr.Row():
            common = [
                gr.Number(0, label="Seed", precision=0, minimum=0, maximum=_SEED),
                gr.Slider(1, _COUNT, 4, step=1, label="Number of images"),
                gr.Dropdown(
                    [ANY, *((printable(name, _NAME), name) for name in names)],
                    value=ANY,
                    label="Class",
                    visible=bool(names),
                ),
            ]
        _tab("Sample", _sample, actions, common, folder)
        if model.kind == "consistency":
            _tab("Inpaint", _inpaint, actions, common, folder)
            if actions.channels == 3:
                _tab("Colourise", _colorize, actions, common, folder)
            if actions.factors():
                _tab("Super-resolve", _super_resolve, actions, common, folder)
            _tab("Strokes", _strokes, actions, common, folder)
            _tab("Interpolate", _interpolate, actions, common, folder, columns=1)
    return page.queue(default_concurrency_limit=1, max_size=WAITING, api_open=False)


def theme() -> gr.Theme:
    """Returns a theme with fonts that need no download."""
    return gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])


def _about(actions: Actions) -> str:
    """Returns a line that describes the model."""
    model = actions.model
    kind = model.kind.replace("_", " ").capitalize()
    size = f"{actions.size}×{actions.size}"
    colour = "colour" if actions.channels == 3 else "grey"
    step = f", {model.step:,} training steps" if model.step is not None else ""
    return f"{kind} model, {size}, {colour}{step}."


def _tab(
    name: str,
    make: Callable[[Actions, _Place], _Tab],
    actions: Actions,
    common: list[Any],
    folder: Folder,
    columns: int = 3,
) -> None:
    """Adds a tab with its controls on the left and the results on the right."""
    with gr.Tab(name), gr.Row():
        with gr.Column():
            place = _Place(common, gr.HTML(visible=False, render=False), folder)
            text, action, own = make(actions, place)
            button = gr.Button(text, variant="primary")
        with gr.Column():
            place.problem.render()
            gallery = gr.Gallery(
                label="Result",
                columns=columns,
                height="auto",
                format="png",
                object_fit="contain",
            )
            line = gr.Markdown()

        def show(*values: Any) -> list[Any]:
            shown = action(*values)
            return [[_file(each, folder) for each in shown.pictures], shown.line]

        _on(button, show, place, own, [gallery, line], text)


def _sample(actions: Actions, place: _Place) -> _Tab:
    """Adds the controls of the tab that samples."""
    del place
    if actions.model.kind == "diffusion":
        points = min(actions.model.config.sample.steps, _POINTS)
        steps = gr.Slider(2, _POINTS, points, step=1, label="Points of the noise grid")
    else:
        steps = gr.Slider(1, _STEPS, 1, step=1, label="Steps")
    return "Sample", actions.sample, [steps]


def _inpaint(actions: Actions, place: _Place) -> _Tab:
    """Adds the controls of the tab that inpaints."""
    brush = gr.Brush(default_size=24, colors=["#ff3355"], color_mode="fixed")
    label = "Paint over the part to replace"
    editor = _editor(actions, place, label, brush=brush)
    _take(actions, place, editor)

    def inpaint(options: Common, drawing: Drawing) -> Shown:
        return actions.inpaint(options, drawing.background, drawing.layers)

    return "Inpaint", inpaint, [editor]


def _colorize(actions: Actions, place: _Place) -> _Tab:
    """Adds the controls of the tab that colourises."""
    image = _image(place)
    _take(actions, place, image)
    return "Colourise", actions.colorize, [image]


def _super_resolve(actions: Actions, place: _Place) -> _Tab:
    """Adds the controls of the tab for super-resolution."""
    image = _image(place)
    _take(actions, place, image)
    factors = actions.factors()
    factor = gr.Dropdown(factors, value=factors[0], label="Factor")
    return "Super-resolve", actions.super_resolve, [image, factor]


def _strokes(actions: Actions, place: _Place) -> _Tab:
    """Adds the controls of the tab for strokes."""
    paper = actions.paper()
    colours: list[Any] = ["#000000", "#ffffff", "#808080"]
    if actions.channels == 3:
        colours += ["#d62828", "#f4a261", "#ffd60a", "#2a9d3f", "#2176c7", "#7b4fa3"]
    brush = gr.Brush(
        default_size=24,
        colors=colours,
        default_color="#000000" if paper.mean() > 127 else "#ffffff",
    )
    editor = _editor(actions, place, "Draw a rough picture", paper, brush=brush)
    noise = actions.model.config.noise
    sigma = gr.Slider(
        max(0.1, noise.sigma_min),
        min(20.0, noise.sigma_max),
        round(actions.stroke_sigma(), 1),
        label="Noise level (lower stays closer to the strokes)",
    )

    def draw(options: Common, drawing: Drawing, sigma: float) -> Shown:
        return actions.stroke_to_image(options, drawing.composite, sigma)

    return "Strokes to picture", draw, [editor, sigma]


def _interpolate(actions: Actions, place: _Place) -> _Tab:
    """Adds the controls of the tab that interpolates."""
    del place
    other = gr.Number(1, label="To seed", precision=0, minimum=0, maximum=_SEED)
    return "Interpolate", actions.interpolate, [other]


def _image(place: _Place) -> gr.Image:
    """Adds a place for a picture."""
    image = gr.Image(
        label="Picture",
        image_mode=None,
        format="png",
        height=400,
        sources=["upload", "clipboard"],
    )
    image.upload(
        lambda: gr.HTML(visible=False),
        None,
        place.problem,
        api_visibility="private",
        show_progress="hidden",
    )
    return image


def _editor(
    actions: Actions,
    place: _Place,
    label: str,
    value: np.ndarray | None = None,
    **options: Any,
) -> gr.ImageEditor:
    """Adds an editor to draw on; it shows a dropped picture as the model sees it.

    The brush then has the same size for pictures of any size.
    """
    editor = gr.ImageEditor(
        value,
        label=label,
        format="png",
        layers=False,
        transforms=(),
        sources=("upload", "clipboard"),
        height=440,
        **options,
    )

    def fit(given: Any) -> tuple[Any, Any]:
        try:
            picture = checked(editor, given, place.folder).background
            if picture is None:
                return gr.skip(), gr.HTML(visible=False)
            return _file(actions.seen(picture), place.folder), gr.HTML(visible=False)
        except JcmError as error:
            return gr.skip(), _failed(error)
        finally:
            memory.trim()

    editor.upload(
        fit,
        editor,
        [editor, place.problem],
        api_visibility="private",
        show_progress="hidden",
        **_ONE,
    )
    return editor


def _take(actions: Actions, place: _Place, shows: Any) -> None:
    """Adds a button that puts a sample into `shows`, which shows a picture."""
    button = gr.Button("Take a sample", size="sm")

    def picture(common: Common) -> list[Any]:
        return [_file(actions.picture(common), place.folder)]

    _on(button, picture, place, [], [shows], "picture")


def _file(picture: UInt8[np.ndarray, "h w 3"], folder: Folder) -> str:
    """Returns the path of a PNG file in the folder of the page.

    Gradio would write a file again for each use of the same picture, also while a
    browser fetches it.
    """
    content = io.BytesIO()
    Image.fromarray(picture).save(content, format="PNG")
    digest = hashlib.sha256(content.getbuffer()).hexdigest()
    path = folder.path / digest / "image.png"
    try:
        os.utime(path)  # old files are deleted
    except FileNotFoundError:
        with files.replacing(path) as temporary:
            temporary.write_bytes(content.getbuffer())
    return str(path)


def _failed(error: JcmError) -> gr.HTML:
    """Returns what shows an error."""
    return gr.HTML(_FAILED.format(html.escape(str(error))), visible=True)


def _on(
    button: gr.Button,
    action: Callable[..., Sequence[Any]],
    place: _Place,
    own: list[Any],
    outputs: list[Any],
    name: str,
) -> None:
    """Makes a button run an action; one runs at a time.

    The tab shows an error until its next action. Over HTTP, an error ends the call.
    """
    inputs = [*place.common, *own]

    def run(given: Sequence[Any]) -> Sequence[Any]:
        try:
            controls = zip(inputs, given, strict=True)
            values = [checked(*each, place.folder) for each in controls]
            common = len(place.common)
            return action(Common(*values[:common]), *values[common:])
        finally:
            memory.trim()

    def show(*given: Any) -> list[Any]:
        try:
            return [*run(given), gr.HTML(visible=False)]
        except JcmError as error:
            return [*[gr.skip()] * len(outputs), _failed(error)]

    def answer(*given: Any) -> Any:
        try:
            results = run(given)
        except JcmError as error:
            problem = str(error)
        else:
            return results if len(outputs) > 1 else results[0]
        # Outside of the block, so that it does not keep the pictures of the call.
        raise gr.Error(problem, print_exception=False)

    button.click(
        show,
        inputs,
        [*outputs, place.problem],
        api_visibility="private",
        show_progress_on=outputs[0],
        **_ONE,
    )
    gr.Button(visible=False).click(
        answer,
        inputs,
        outputs,
        api_name=name.lower().replace("-", "_").replace(" ", "_"),
        **_ONE,
    )
