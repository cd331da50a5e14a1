"""Editing of picture files: `jcm edit`."""

import dataclasses
import functools
import math
import os
import pathlib
from collections.abc import Callable, Collection
from typing import Any

import jax
import numpy as np
import tqdm
from absl import logging
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict

from jcm.commands import unused
from jcm.commands.flags import TASKS
from jcm.data import images
from jcm.model import loading
from jcm.model import pictures as picture_files
from jcm.model.labels import image_labels
from jcm.model.model import Model
from jcm.model.pictures import open_pictures
from jcm.run import grids
from jcm.runtime import files
from jcm.runtime.errors import JcmError

# The summary shows this many pictures before and after the edit, each with all its
# results, at least this many pixels high, and as wide as a caption.
_SHOWN, _VISIBLE, _CAPTION = 16, 32, 180
_SUMMARY = "before_after"
# The largest difference in aspect ratio between a mask and a picture.
_SAME_SHAPE = 0.02

Pixels = UInt8[np.ndarray, "_n _h _w _c"]


@dataclasses.dataclass(frozen=True)
class Request:
    """What to edit, and how.

    Attributes:
      task: one of `flags.TASKS`.
      input: a picture or a folder of pictures; not used by "interpolate".
      output: folder for the results, new or empty.
      mask: "inpaint": a picture that is white where the input is replaced. It is square
        or has the aspect ratio of the input. A mask of the model's size may be soft;
        one of another size is rounded to black and white.
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

    Pictures are cut to their central square and resized to the model's size first.
    Writes each result as a PNG file with the name of its picture, and before_after.png,
    which shows the first 16 pictures with all their results.

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
    output = files.new_folder(pathlib.Path(request.output).expanduser())
    model = loading.from_config(config, workdir)
    unused.check("edit", model.kind, config, given)
    if request.task == "interpolate":
        _interpolate(config, model, request, output)
    else:
        _edit_pictures(config, model, request, output)


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
    config: ConfigDict, model: Model, request: Request, output: pathlib.Path
) -> None:
    """Edits the pictures in batches, and writes each result as soon as it is there."""
    paths = _paths(request)
    variants = request.variants
    names = _names(paths, variants)
    labels = image_labels(config, len(paths), model.denoiser, model.class_names)
    edit_batch = _routine(config, model, request)
    steps = 1 if request.task == "denoise" else len(_levels(model, request))
    before: list[Any] = []
    after: list[Any] = []
    size = max(1, config.sample.batch_size // variants)
    total = len(names) * steps
    # With a delay, the bar appears with the first results and not before an error.
    with tqdm.tqdm(
        total=total, desc=request.task, unit="evaluation", delay=0.1
    ) as progress:
        for start in range(0, len(paths), size):
            part = paths[start : start + size]
            batch = open_pictures(part, model, size=_input_size(model, request))
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
            before += list(images.to_uint8(batch[: _SHOWN - len(before)]))
            after += list(edited[: _SHOWN * variants - len(after)])
    columns = variants if variants > 1 else math.ceil(math.sqrt(len(before)))
    scale = _scale(after[0].shape[0], columns)
    scale_before = max(1, scale * after[0].shape[0] // before[0].shape[0])
    # Several results of a picture are in its row.
    columns_before = 1 if variants > 1 else columns
    panels = {
        "before": grids.grid(np.stack(before), columns_before, scale_before),
        f"after, {steps} evaluation" + "s" * (steps > 1): grids.grid(
            np.stack(after), columns, scale
        ),
    }
    _write_summary(output, panels, len(names))


def _scale(size: int, columns: int) -> int:
    """Returns the factor that makes a row wide enough for the caption above it."""
    return max(math.ceil(_VISIBLE / size), math.ceil(_CAPTION / (size * columns)))


def _routine(
    config: ConfigDict, model: Model, request: Request
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
    size = model.denoiser.network.arch.image_size
    if request.task == "inpaint":
        if not request.mask:
            raise JcmError("inpainting needs a mask: --mask=mask.png")
        options["mask"] = _mask(request, size)
    if request.task == "outpaint":
        margin = (size - _input_size(model, request)) // 2
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
    output: pathlib.Path, panels: dict[str, np.ndarray], count: int
) -> None:
    """Writes before_after.png, and logs how many results there are."""
    if jax.process_index() == 0:
        grids.save_png(grids.captioned(panels), output / f"{_SUMMARY}.png", scale=1)
        plural = "s" * (count > 1)
        logging.info("wrote %d picture%s to %s", count, plural, output)


# --- the pictures of a request


def _paths(request: Request) -> list[pathlib.Path]:
    """Returns the pictures in a folder, or the one picture."""
    if not request.input:
        raise JcmError("name a picture or a folder of pictures: --input=photo.png")
    return picture_files.find(request.input)


def _names(paths: list[pathlib.Path], variants: int) -> list[str]:
    """Returns the name of each result, which is unique."""
    stems = [path.stem for path in paths]
    if len(set(stems)) < len(stems) or _SUMMARY in stems:
        stems = [path.name for path in paths]
    if variants == 1:
        return stems
    return [f"{stem}_{i}" for stem in stems for i in range(variants)]


def _input_size(model: Model, request: Request) -> int:
    """Returns the height and width in which the task takes pictures."""
    size = model.denoiser.network.arch.image_size
    if request.task not in ("super_resolve", "outpaint"):
        return size
    if request.factor < 2 or size % request.factor:
        raise JcmError(
            f"--factor={request.factor} must be at least 2 and divide the model's"
            f" {size}"
        )
    return size // request.factor


def _mask(request: Request, size: int) -> Float[np.ndarray, "size size"]:
    """Reads the mask of all pictures."""
    path = pathlib.Path(request.mask).expanduser()
    mask = picture_files.read(path, size, 1)[..., 0] / 255
    with picture_files.opened(path) as file:
        width, height = file.size
        clear = file.has_transparency_data
    if clear:
        raise JcmError(f"{path} has transparency: use a mask of black and white")
    if width != height:
        for picture in _paths(request):
            with picture_files.opened(picture) as file:
                other = file.size
            if abs(other[0] / other[1] - width / height) > _SAME_SHAPE:
                raise JcmError(
                    f"{path} of {width}x{height} has another aspect ratio than"
                    f" {picture} of {other[0]}x{other[1]}: use a mask of the same"
                    " aspect ratio, or a square one for the central square"
                )
    return mask if (width, height) == (size, size) else np.round(mask)
