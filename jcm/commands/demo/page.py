"""The layout of the page, and the action of each button."""

import dataclasses
import functools
import hashlib
import html
import io
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from jcm.commands.demo.actions import ANY, Actions, Common, Shown
from jcm.runtime import files
from jcm.runtime.errors import JcmError

# The largest values of the controls.
_STEPS, _POINTS, _COUNT, _SEED = 8, 40, 16, 2**32 - 1
# A tab: the text of its button, the action, and the controls that only it has.
_Tab = tuple[str, Callable[..., Shown], list[Any]]
_FAILED = "<p role='alert' style='color: var(--error-text-color, #b91c1c)'>{}</p>"


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where the controls of a tab are.

    Attributes:
      common: the controls that all tabs share.
      problem: shows the error of the last action of the tab.
    """

    common: list[Any]
    problem: gr.HTML


def build(actions: Actions) -> gr.Blocks:
    """Builds the page of a model; a diffusion model has only the tab to sample."""
    model = actions.model
    # Pictures that users upload are deleted after an hour.
    with gr.Blocks(
        title="jcm", analytics_enabled=False, delete_cache=(3600, 3600)
    ) as page:
        gr.Markdown(f"# jcm\n{_about(actions)}")
        with gr.Row():
            common = [
                gr.Number(0, label="Seed", precision=0, minimum=0, maximum=_SEED),
                gr.Slider(1, _COUNT, 4, step=1, label="Number of images"),
                gr.Dropdown(
                    [ANY, *model.class_names],
                    value=ANY,
                    label="Class",
                    visible=bool(model.class_names),
                ),
            ]
        _tab("Sample", _sample, actions, common)
        if model.kind == "consistency":
            _tab("Inpaint", _inpaint, actions, common)
            if actions.channels == 3:
                _tab("Colourise", _colorize, actions, common)
            if actions.factors():
                _tab("Super-resolve", _super_resolve, actions, common)
            _tab("Strokes", _strokes, actions, common)
            _tab("Interpolate", _interpolate, actions, common, columns=1)
    return page.queue(default_concurrency_limit=1)


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
    columns: int = 3,
) -> None:
    """Adds a tab with its controls on the left and the results on the right."""
    with gr.Tab(name), gr.Row():
        with gr.Column():
            place = _Place(common, gr.HTML(visible=False, render=False))
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
            return [[_file(each, gallery) for each in shown.pictures], shown.line]

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

    def inpaint(options: Common, drawing: dict[str, Any] | None) -> Shown:
        drawing = drawing or {}
        layers = [layer for layer in drawing.get("layers") or [] if layer is not None]
        return actions.inpaint(options, drawing.get("background"), _over(layers))

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

    def draw(options: Common, drawing: dict[str, Any] | None, sigma: float) -> Shown:
        drawing = drawing or {}
        return actions.stroke_to_image(options, drawing.get("composite"), sigma)

    return "Strokes to picture", draw, [editor, sigma]


def _interpolate(actions: Actions, place: _Place) -> _Tab:
    """Adds the controls of the tab that interpolates."""
    del place
    other = gr.Number(1, label="To seed", precision=0, minimum=0, maximum=_SEED)
    return "Interpolate", actions.interpolate, [other]


def _image(place: _Place) -> gr.Image:
    """Adds a place for a picture, which actions get as the path of its file."""
    image = gr.Image(
        label="Picture",
        type="filepath",
        image_mode=None,
        format="png",
        height=400,
        sources=["upload", "clipboard"],
    )
    # Gradio would open the file, and log a stack trace if it is broken.
    vars(image)["preprocess"] = lambda payload: payload and payload.path
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
        type="pil",
        format="png",
        layers=False,
        transforms=(),
        sources=("upload", "clipboard"),
        height=440,
        **options,
    )

    def fit(drawing: dict[str, Any] | None) -> Any:
        given = (drawing or {}).get("background")
        shown = gr.skip() if given is None else _file(actions.seen(given), editor)
        return shown, gr.HTML(visible=False)

    editor.upload(
        fit,
        editor,
        [editor, place.problem],
        api_visibility="private",
        show_progress="hidden",
    )
    return editor


def _over(layers: list[Image.Image]) -> Image.Image | None:
    """Returns all layers in one."""
    if not layers:
        return None
    layers = [layer.convert("RGBA") for layer in layers]
    return functools.reduce(Image.alpha_composite, layers)


def _take(actions: Actions, place: _Place, shows: Any) -> None:
    """Adds a button that puts a sample into `shows`, which shows a picture."""
    button = gr.Button("Take a sample", size="sm")

    def picture(common: Common) -> list[Any]:
        return [_file(actions.picture(common), shows)]

    _on(button, picture, place, [], [shows], "picture")


def _file(picture: UInt8[np.ndarray, "h w 3"], shown_by: Any) -> str:
    """Returns the path of a PNG file in the cache of a part of the page.

    Gradio would write a file again for each use of the same picture, also while a
    browser fetches it.
    """
    content = io.BytesIO()
    Image.fromarray(picture).save(content, format="PNG")
    digest = hashlib.sha256(content.getbuffer()).hexdigest()
    path = pathlib.Path(shown_by.GRADIO_CACHE, digest, "image.png")
    if path.exists():
        os.utime(path)  # old files are deleted
    else:
        with files.replacing(path) as temporary:
            temporary.write_bytes(content.getbuffer())
    return str(path)


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
    common = place.common

    def run(seed: Any, count: int, label: str | None, *values: Any) -> Sequence[Any]:
        for control, value in zip([common[0], *own], [seed, *values], strict=True):
            if value is None and isinstance(control, gr.Number | gr.Slider):
                raise JcmError(f"{control.label}: enter a number")
        return action(Common(int(seed), int(count), label or ANY), *values)

    def show(*values: Any) -> list[Any]:
        try:
            return [*run(*values), gr.HTML(visible=False)]
        except JcmError as error:
            text = _FAILED.format(html.escape(str(error)))
            kept = [gr.skip()] * len(outputs)
            return [*kept, gr.HTML(text, visible=True)]

    def answer(*values: Any) -> Any:
        try:
            results = run(*values)
        except JcmError as error:
            raise gr.Error(str(error), print_exception=False) from error
        return results if len(outputs) > 1 else results[0]

    inputs = [*common, *own]
    one_at_a_time: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}
    button.click(
        show,
        inputs,
        [*outputs, place.problem],
        api_visibility="private",
        **one_at_a_time,
    )
    gr.Button(visible=False).click(
        answer,
        inputs,
        outputs,
        api_name=name.lower().replace("-", "_").replace(" ", "_"),
        **one_at_a_time,
    )
