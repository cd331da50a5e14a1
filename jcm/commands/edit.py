"""Editing of picture files: `jcm edit`."""

import dataclasses
import functools
import math
import os
import pathlib
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import numpy as np
import tqdm
from absl import logging
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict

from jcm.commands import unused
from jcm.commands.flags import TASKS
from jcm.data import masks
from jcm.model import loading
from jcm.model import pictures as picture_files
from jcm.model.labels import image_labels
from jcm.model.model import Model
from jcm.run import grids
from jcm.runtime import files
from jcm.runtime.errors import JcmError
from jcm.runtime.paths import expanded

# The summary shows this many pictures before and after the edit, each with all its
# results, at least this many pixels high, and as wide as a caption.
_SHOWN, _VISIBLE, _CAPTION = 16, 64, 180
_SUMMARY = "before_after"
# What is under the mask has this colour in the summary.
_PAINT = np.asarray([255, 51, 85], np.uint8)

Pixels = UInt8[np.ndarray, "_n _h _w _c"]


@dataclasses.dataclass(frozen=True)
class _Given:
    """What to edit, read completely before the model is loaded.

    Attributes:
      names: of the pictures, which are unique.
      pixels: the pictures in the size that the task takes.
      mask: "inpaint": 1 where they are replaced.
      places: of the pictures among all, which include those that cannot be read.
      skipped: number of pictures that cannot be read.
    """

    names: list[str]
    pixels: Pixels
    mask: Float[np.ndarray, "size size"] | None
    places: list[int]
    skipped: int


@dataclasses.dataclass(frozen=True)
class Request:
    """What to edit, and how.

    Attributes:
      task: one of `flags.TASKS`.
      input: a picture or a folder of pictures; not used by "interpolate".
      output: folder for the results, new or empty.
      mask: "inpaint": a picture that is white where the input is replaced, and black
        elsewhere. It is square or has the aspect ratio of the input. Each pixel of the
        model that is painted on at all is replaced.
      factor: "super_resolve" and "outpaint": height and width of the result, divided by
        those of the input.
      sigmas: noise levels of the steps; empty for those of the paper. "denoise": the
        noise level of the pictures; empty to estimate it for each picture.
      variants: number of results for each picture.
      seeds: "interpolate": seeds of the images to pass through.
    """

    task: str
    input: str
    output: str
    mask: str = ""
    factor: int = 2
    sigmas: tuple[float, ...] = ()
    variants: int = 1
    seeds: tuple[int, ...] = (0, 1)


def edit(
    config: ConfigDict,
    workdir: str | os.PathLike,
    request: Request,
    given: Collection[str] = (),
) -> None:
    """Edits pictures with the model that the config names.

    All pictures are read before the model is loaded. They are cropped to their central
    square and resized. With `config.data.skip_broken`, those that cannot be read are
    skipped. Writes each result as a PNG file with the name of its picture, and
    before_after.png, which shows the first 16 pictures, what is replaced in them, and
    all their results.

    Args:
      config: which model to use, and how to sample.
      workdir: the run's folder.
      request: what to edit, and how.
      given: dotted names of the fields that the command line set.

    Raises:
      JcmError: if pictures, the mask or settings do not fit, if the output folder
        contains files, or if the command does not use a given field.
    """
    _check(request)
    output = files.new_folder(request.output)
    if request.task == "interpolate":
        model = _model(config, workdir, given)
        _interpolate(config, model, request, output)
    else:
        found = _read(config, request)
        model = _model(config, workdir, given)
        _edit_pictures(config, model, request, found, output)


def _model(
    config: ConfigDict, workdir: str | os.PathLike, given: Collection[str]
) -> Model:
    """Loads the model, and checks that the fields of the command line are used."""
    model = loading.from_config(config, workdir)
    unused.check("edit", model.kind, config, given)
    return model


def _check(request: Request) -> None:
    """Checks that the task is known and uses the settings of the request.

    Raises:
      JcmError: if not.
    """
    task = request.task
    if task not in TASKS:
        raise JcmError(f"--task={task!r} is unknown: use one of {', '.join(TASKS)}")
    if not request.output:
        raise JcmError("name a folder for the results: --output=out")
    if request.variants < 1:
        raise JcmError(f"--variants={request.variants} must be at least 1")
    if task in ("denoise", "interpolate") and request.variants != 1:
        raise JcmError(f"--task={task} does not use --variants: drop it")
    if task == "denoise" and len(request.sigmas) > 1:
        raise JcmError("--task=denoise takes one noise level, such as --sigmas=0.5")
    if request.mask and task != "inpaint":
        raise JcmError(f"--task={task} does not use --mask: drop it")
    if task == "inpaint" and not request.mask:
        raise JcmError("inpainting needs a mask: --mask=mask.png")
    if task != "interpolate" and not request.input:
        raise JcmError("name a picture or a folder of pictures: --input=photo.png")


def _interpolate(
    config: ConfigDict, model: Model, request: Request, output: pathlib.Path
) -> None:
    """Writes the images between those of several seeds."""
    count = config.sample.num_images
    options: dict[str, Any] = {"seed": config.sample.seed}
    if config.sample.labels:
        options["labels"] = config.sample.labels[0]
    if request.sigmas:
        options["sigmas"] = request.sigmas
    pixels = model.edit.interpolate(request.seeds, count, output="uint8", **options)
    _write(output, [f"{i:03d}" for i in range(len(pixels))], pixels)
    scale = _scale(pixels.shape[1], count)
    panels = {"interpolation": grids.grid(pixels, count, scale)}
    _write_summary(output, panels, len(pixels))


def _edit_pictures(
    config: ConfigDict,
    model: Model,
    request: Request,
    given: _Given,
    output: pathlib.Path,
) -> None:
    """Edits the pictures in batches, and writes each result as soon as it is there."""
    variants, count = request.variants, len(given.pixels)
    names = given.names
    if variants > 1:
        names = [f"{name}_{i}" for name in names for i in range(variants)]
    # A picture that is skipped takes its label with it.
    labels = image_labels(
        config, count + given.skipped, model.denoiser, model.class_names
    )
    labels = labels and [labels[place] for place in given.places]
    edit_batch = _routine(config, model, request, given)
    steps = 1 if request.task == "denoise" else len(_levels(model, request))
    after: list[Any] = []
    size = max(1, config.sample.batch_size // variants)
    total = len(names) * steps
    # With a delay, the bar appears with the first results and not before an error.
    with tqdm.tqdm(
        total=total, desc=request.task, unit="evaluation", delay=0.1
    ) as progress:
        for start in range(0, count, size):
            batch = given.pixels[start : start + size]
            results = slice(start * variants, (start + len(batch)) * variants)
            options = {"labels": labels and labels[start : start + size]}
            if request.task == "denoise":  # a single step without random noise
                edited = edit_batch(batch, **options)
                progress.update(len(batch))
            else:
                edited = edit_batch(
                    batch,
                    first=results.start,
                    progress=False,
                    callback=lambda step, sigma, x: progress.update(len(x)),
                    **options,
                )
            _write(output, names[results], edited)
            after += list(edited[: _SHOWN * variants - len(after)])
    _write_summary(
        output, _panels(given, np.stack(after), steps), len(names), given.skipped
    )


def _panels(given: _Given, after: Pixels, steps: int) -> dict[str, np.ndarray]:
    """Returns the first pictures, what is replaced in them, and all their results."""
    before = given.pixels[:_SHOWN]
    variants = len(after) // len(before)
    columns = variants if variants > 1 else math.ceil(math.sqrt(len(before)))
    scale = _scale(after.shape[1], columns)
    scale_before = max(1, scale * after.shape[1] // before.shape[1])
    # Several results of a picture are in its row.
    columns_before = 1 if variants > 1 else columns
    panels = {"before": grids.grid(before, columns_before, scale_before)}
    if given.mask is not None:
        colours = np.broadcast_to(before, (*before.shape[:3], 3))
        painted = np.where(given.mask[..., None] > 0, _PAINT, colours)
        panels["replaced"] = grids.grid(painted, columns_before, scale_before)
    plural = "s" * (steps > 1)
    caption = f"after, {steps} evaluation{plural}"
    return panels | {caption: grids.grid(after, columns, scale)}


def _scale(size: int, columns: int) -> int:
    """Returns the factor that makes a row wide enough for the caption above it."""
    return max(math.ceil(_VISIBLE / size), math.ceil(_CAPTION / (size * columns)))


def _routine(
    config: ConfigDict, model: Model, request: Request, given: _Given
) -> Callable[..., Pixels]:
    """Returns the editor's routine for the task, with its options for all pictures."""
    routine = functools.partial(getattr(model.edit, request.task), output="uint8")
    if request.task == "denoise":
        return functools.partial(routine, sigma=request.sigmas or None)
    options: dict[str, Any] = {
        "sigmas": _levels(model, request),
        "seed": config.sample.seed,
        "variants": request.variants,
    }
    if request.task == "inpaint":
        options["mask"] = given.mask
    if request.task == "outpaint":
        margin = (config.data.image_size - _input_size(config, request)) // 2
        options |= {"top": margin, "left": margin}
    return functools.partial(routine, **options)


def _levels(model: Model, request: Request) -> tuple[float, ...]:
    """Returns the noise levels of the steps."""
    return request.sigmas or model.edit.sigmas(request.task)


def _write(output: pathlib.Path, names: list[str], pixels: Pixels) -> None:
    """Writes each result as a PNG file; only process 0 writes."""
    if jax.process_index() == 0:
        for name, image in zip(names, pixels, strict=True):
            grids.save_png(image, output / f"{name}.png", scale=1)


def _write_summary(
    output: pathlib.Path, panels: dict[str, np.ndarray], count: int, skipped: int = 0
) -> None:
    """Writes before_after.png, and logs how many results there are."""
    if jax.process_index() == 0:
        grids.save_png(grids.captioned(panels), output / f"{_SUMMARY}.png", scale=1)
        logging.info(
            "wrote %d picture%s to %s%s",
            *(count, "s" * (count > 1), output),
            f"; {skipped} cannot be read and were skipped" if skipped else "",
        )


# --- the pictures of a request


def _read(config: ConfigDict, request: Request) -> _Given:
    """Reads the pictures and the mask of a request."""
    task, data = request.task, config.data
    if task == "colorize" and data.channels != 3:
        raise JcmError(
            "--task=colorize: the model makes grey images: use a model of colour images"
        )
    size = _input_size(config, request)
    paths = picture_files.find(request.input)
    found = picture_files.read_all(
        *(paths, size, data.channels),
        skip_broken=data.skip_broken,
        remedy="delete them or pass --config.data.skip_broken=True",
    )
    mask = None
    if task == "inpaint":
        path = expanded(request.mask)
        sizes = dict(zip(map(str, found.paths), found.sizes, strict=True))
        mask = masks.of_picture(picture_files.decoded(path), size, str(path), sizes)
    places = {path: place for place, path in enumerate(paths)}
    return _Given(
        _names(found.paths),
        found.pixels,
        mask,
        places=[places[path] for path in found.paths],
        skipped=len(paths) - len(found.paths),
    )


def _names(paths: Sequence[pathlib.Path]) -> list[str]:
    """Returns the name of each picture, which is unique."""
    for names in ([path.stem for path in paths], [path.name for path in paths]):
        if len(set(names)) == len(names) and _SUMMARY not in names:
            return names
    raise JcmError(f"the summary is named {_SUMMARY}: rename the picture of this name")


def _input_size(config: ConfigDict, request: Request) -> int:
    """Returns the height and width in which the task takes pictures."""
    size = config.data.image_size
    if request.task not in ("super_resolve", "outpaint"):
        return size
    if request.factor < 2 or size % request.factor:
        raise JcmError(
            f"--factor={request.factor} must be at least 2 and divide the model's"
            f" {size}"
        )
    return size // request.factor
