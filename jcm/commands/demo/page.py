"""The layout of the page, and the action of each button."""

import functools
from collections.abc import Callable
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from jcm.commands.demo.actions import ANY, Actions, Common, Shown
from jcm.runtime.errors import JcmError

# The largest values of the controls.
_STEPS, _POINTS, _COUNT, _SEED = 8, 40, 16, 2**31 - 1
# A tab: the text of its button, the action, and the controls that only it has.
_Tab = tuple[str, Callable[..., Shown], list[Any]]


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
    make: Callable[..., _Tab],
    actions: Actions,
    common: list[Any],
    columns: int = 3,
) -> None:
    """Adds a tab with its controls on the left and the results on the right."""
    with gr.Tab(name), gr.Row():
        with gr.Column():
            text, action, own = make(actions, common)
            button = gr.Button(text, variant="primary")
        with gr.Column():
            gallery = gr.Gallery(
                label="Result",
                columns=columns,
                height="auto",
                format="png",
                object_fit="contain",
            )
            line = gr.Markdown()

    def show(*values: Any) -> Any:
        shown = action(*values)
        return shown.pictures, shown.line

    _on(button, show, common, own, [gallery, line], text)


def _sample(actions: Actions, common: list[Any]) -> _Tab:
    """Adds the controls of the tab that samples."""
    del common
    if actions.model.kind == "diffusion":
        points = min(actions.model.config.sample.steps, _POINTS)
        steps = gr.Slider(2, _POINTS, points, step=1, label="Points of the noise grid")
    else:
        steps = gr.Slider(1, _STEPS, 1, step=1, label="Steps")
    return "Sample", actions.sample, [steps]


def _inpaint(actions: Actions, common: list[Any]) -> _Tab:
    """Adds the controls of the tab that inpaints."""
    brush = gr.Brush(default_size=24, colors=["#ff3355"], color_mode="fixed")
    editor = _editor(actions, "Paint over the part to replace", brush=brush)
    _take(actions, common, editor)

    def inpaint(options: Common, drawing: dict[str, Any] | None) -> Shown:
        drawing = drawing or {}
        layers = [layer for layer in drawing.get("layers") or [] if layer is not None]
        return actions.inpaint(options, drawing.get("background"), _over(layers))

    return "Inpaint", inpaint, [editor]


def _colorize(actions: Actions, common: list[Any]) -> _Tab:
    """Adds the controls of the tab that colourises."""
    image = _image()
    _take(actions, common, image)
    return "Colourise", actions.colorize, [image]


def _super_resolve(actions: Actions, common: list[Any]) -> _Tab:
    """Adds the controls of the tab for super-resolution."""
    image = _image()
    _take(actions, common, image)
    factors = actions.factors()
    factor = gr.Dropdown(factors, value=factors[0], label="Factor")
    return "Super-resolve", actions.super_resolve, [image, factor]


def _strokes(actions: Actions, common: list[Any]) -> _Tab:
    """Adds the controls of the tab for strokes."""
    del common
    paper = actions.paper()
    colours: list[Any] = ["#000000", "#ffffff", "#808080"]
    if actions.channels == 3:
        colours += ["#d62828", "#f4a261", "#ffd60a", "#2a9d3f", "#2176c7", "#7b4fa3"]
    brush = gr.Brush(
        default_size=24,
        colors=colours,
        default_color="#000000" if paper.mean() > 127 else "#ffffff",
    )
    editor = _editor(actions, "Draw a rough picture", paper, brush=brush)
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


def _interpolate(actions: Actions, common: list[Any]) -> _Tab:
    """Adds the controls of the tab that interpolates."""
    del common
    other = gr.Number(1, label="To seed", precision=0, minimum=0, maximum=_SEED)
    return "Interpolate", actions.interpolate, [other]


def _image() -> gr.Image:
    """Adds a place for a picture."""
    return gr.Image(
        label="Picture",
        type="pil",
        image_mode=None,
        format="png",
        height=400,
        sources=["upload", "clipboard"],
    )


def _editor(
    actions: Actions, label: str, value: np.ndarray | None = None, **options: Any
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
        return gr.skip() if given is None else actions.seen(given)

    editor.upload(fit, editor, editor, api_visibility="private", show_progress="hidden")
    return editor


def _over(layers: list[Image.Image]) -> Image.Image | None:
    """Returns all layers in one."""
    if not layers:
        return None
    layers = [layer.convert("RGBA") for layer in layers]
    return functools.reduce(Image.alpha_composite, layers)


def _take(actions: Actions, common: list[Any], place: Any) -> None:
    """Adds a button that puts a sample into `place`, which shows a picture."""
    button = gr.Button("Take a sample", size="sm")
    _on(button, actions.picture, common, [], place, "picture")


def _on(
    button: gr.Button,
    action: Callable[..., Any],
    common: list[Any],
    own: list[Any],
    outputs: Any,
    name: str,
) -> None:
    """Makes a button run an action; one runs at a time, and the page shows errors."""

    def run(seed: Any, count: int, label: str | None, *values: Any) -> Any:
        try:
            for place, value in zip([common[0], *own], [seed, *values], strict=True):
                if value is None and isinstance(place, gr.Number | gr.Slider):
                    raise JcmError(f"{place.label}: enter a number")
            return action(Common(int(seed), int(count), label or ANY), *values)
        except JcmError as error:
            raise gr.Error(str(error), print_exception=False) from error

    button.click(
        run,
        [*common, *own],
        outputs,
        api_name=name.lower().replace("-", "_").replace(" ", "_"),
        concurrency_id="model",
        concurrency_limit=1,
    )
