"""Editing of picture files: `--mode=edit`."""

import contextlib
import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import tqdm
from absl import logging
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict
from PIL import Image

from jcm.data import pictures
from jcm.model import build, model
from jcm.model.editor import Edited
from jcm.run import grids
from jcm.runtime import files
from jcm.runtime.errors import JcmError, one_line

TASKS = (
    "inpaint",
    "outpaint",
    "colorize",
    "super_resolve",
    "stroke_to_image",
    "variations",
    "denoise",
    "interpolate",
)
# Pictures shown before and after.
_SHOWN = 16
_SUMMARY = "before_after"


@dataclasses.dataclass(frozen=True)
class Request:
    """What to do.

    Attributes:
      task: one of `TASKS`.
      input: a picture or a folder of pictures; not for "interpolate".
      output: folder for the results, new or empty.
      mask: "inpaint": a picture, white where anything may be, square or shaped like
        the input. Of the model's size it may be soft; of another it is black or white.
      factor: "super_resolve" and "outpaint": how many times the input's height and
        width the result has.
      sigmas: noise levels of the steps; empty for those of the paper. "denoise": the
        level of the noise; empty estimates it of each picture.
      variants: results for each picture.
      seeds: "interpolate": of the images on the way.
    """

    task: str
    input: str
    output: str
    mask: str = ""
    factor: int = 2
    sigmas: tuple[float, ...] = ()
    variants: int = 1
    seeds: tuple[int, ...] = (0, 1)


def edit(config: ConfigDict, workdir: str | os.PathLike, request: Request) -> None:
    """Edits pictures with the model that the config names.

    Pictures are cut to their central square and brought to the model's size first.
    Writes each result as PNG under the name of its picture, and before_after.png.

    Args:
      config: what it says of sampling counts.
      workdir: of the run.
      request: what to do.

    Raises:
      JcmError: for pictures, masks or settings that do not fit, and for an output
        folder with files in it.
    """
    _check(request)
    output = files.new_folder(pathlib.Path(request.output).expanduser())
    trained = model.of_config(config, workdir)
    if request.task == "interpolate":
        _interpolate(trained, request, config, output)
        return
    paths = _paths(request.input)
    stems = _stems(paths)
    labels = build.sample_labels(
        config, trained.denoiser, trained.class_names, len(paths)
    )
    call = _call(trained, request)
    # A batch of results at a time, each written as soon as it is there.
    size = max(1, config.sample.batch_size // request.variants)
    levels = request.sigmas or trained.edit.sigmas(request.task)
    steps = 1 if request.task == "denoise" else len(levels)
    before, after, nfe = [], [], 0
    with tqdm.tqdm(
        total=len(paths) * request.variants * steps,
        desc=request.task,
        unit="evaluation",
    ) as progress:
        for start in range(0, len(paths), size):
            part = slice(start, start + size)
            given = _given(trained, request, paths[part])
            options: dict[str, Any] = {"labels": labels and labels[part]}
            if request.task == "denoise":
                options["sigma"] = request.sigmas or None
            else:
                options |= {
                    "sigmas": levels,
                    "seed": config.sample.seed,
                    "variants": request.variants,
                    "first": start * request.variants,
                    "visit": lambda clean: progress.update(len(clean)),
                }
            made = call(given, **options)
            if request.task == "denoise":
                progress.update(len(given))
            names = [
                f"{stem}_{j}" if request.variants > 1 else stem
                for stem in stems[part]
                for j in range(request.variants)
            ]
            _write(output, names, made.pixels)
            nfe = made.nfe
            before += list(given[: _SHOWN - len(before)])
            after += list(made.pixels[:: request.variants][: _SHOWN - len(after)])
    panels = {
        "before": grids.grid(np.stack(before)),
        f"after, {nfe} evaluations": grids.grid(np.stack(after)),
    }
    _finish(output, panels, len(paths) * request.variants)


def _check(request: Request) -> None:
    """Refuses what no task, or not this one, can use."""
    if request.task not in TASKS:
        raise JcmError(f"--edit.task={request.task!r}: use one of {', '.join(TASKS)}")
    if not request.output:
        raise JcmError("name a folder for the results: --edit.output=out")
    single = request.task in ("denoise", "interpolate")
    if single and request.variants != 1:
        raise JcmError(f"--edit.task={request.task} has no --edit.variants: drop it")
    if request.task == "denoise" and len(request.sigmas) > 1:
        raise JcmError("denoising takes the one level of the noise: --edit.sigmas=0.5")
    if request.mask and request.task != "inpaint":
        raise JcmError(f"--edit.task={request.task} has no --edit.mask: drop it")


def _interpolate(
    trained: model.Model, request: Request, config: ConfigDict, output: pathlib.Path
) -> None:
    count = config.sample.num_images
    options: dict[str, Any] = {"seed": config.sample.seed}
    if config.sample.labels:
        options["labels"] = config.sample.labels[0]
    if request.sigmas:
        options["sigmas"] = request.sigmas
    pixels = trained.edit.interpolate(request.seeds, count, **options).pixels
    _write(output, [f"{i:03d}" for i in range(len(pixels))], pixels)
    panels = {"interpolation": grids.grid(pixels, columns=count)}
    _finish(output, panels, len(pixels))


def _write(
    output: pathlib.Path, names: list[str], pixels: UInt8[np.ndarray, "n h w c"]
) -> None:
    """One PNG for each result, by process 0."""
    if jax.process_index() == 0:
        for name, image in zip(names, pixels, strict=True):
            colour = np.broadcast_to(image, (*image.shape[:2], 3))
            grids.save_png(output / f"{name}.png", np.ascontiguousarray(colour))


def _finish(output: pathlib.Path, panels: dict[str, np.ndarray], count: int) -> None:
    if jax.process_index() == 0:
        grids.save_png(output / f"{_SUMMARY}.png", grids.captioned(panels))
        logging.info("wrote %d pictures to %s", count, output)


def _call(trained: model.Model, request: Request) -> Callable[..., Edited]:
    """The routine of a task, with what it needs beside the pictures."""
    routine = getattr(trained.edit, request.task)
    if request.task == "inpaint":
        if not request.mask:
            raise JcmError("inpainting needs a mask: --edit.mask=mask.png")
        size = trained.denoiser.network.arch.image_size
        return functools.partial(routine, mask=_mask(request, size))
    if request.task == "outpaint":
        size = trained.denoiser.network.arch.image_size
        begin = (size - size // request.factor) // 2
        return functools.partial(routine, top=begin, left=begin)
    return routine


def _mask(request: Request, size: int) -> Float[np.ndarray, "size size"]:
    """The mask of all pictures, whose shapes it must have if it is not square."""
    path = pathlib.Path(request.mask).expanduser()
    free = _read(path, size, 1)[..., 0] / 255
    with Image.open(path) as file:
        width, height = file.size
        if file.has_transparency_data:
            raise JcmError(f"{path} has transparency: a mask is black and white")
    if width != height:
        for each in _paths(request.input):
            other = _size(each)
            if abs(other[0] / other[1] - width / height) > 0.02:
                raise JcmError(
                    f"{path} of {width}x{height} is shaped unlike {each} of"
                    f" {other[0]}x{other[1]}: use one alike, or a square for the middle"
                )
    return free if (width, height) == (size, size) else np.round(free)


def _given(
    trained: model.Model, request: Request, paths: list[pathlib.Path]
) -> UInt8[np.ndarray, "n h w c"]:
    arch = trained.denoiser.network.arch
    size = arch.image_size
    if request.task in ("super_resolve", "outpaint"):
        if request.factor < 2 or size % request.factor:
            raise JcmError(
                f"--edit.factor={request.factor} must be at least 2 and divide the"
                f" model's {size}"
            )
        size //= request.factor
    return np.stack([_read(path, size, arch.image_channels) for path in paths])


def _read(path: pathlib.Path, size: int, channels: int) -> UInt8[np.ndarray, "h w c"]:
    with _opened(path) as file:
        mode, (width, height) = file.mode, file.size
        image = pictures.square(file, size, channels)
    wanted = ("RGB" if channels == 3 else "L", size, size)
    if (mode, width, height) != wanted:
        logging.info(
            "%s, %s of %dx%d, is used as %s of %dx%d",
            *(path, mode, width, height),
            *wanted,
        )
    return image


def _size(path: pathlib.Path) -> tuple[int, int]:
    """Width and height."""
    with _opened(path) as file:
        return file.size


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as file:
            yield file
    # Pillow's decoders raise a dozen kinds of exception for broken files.
    except Exception as error:
        reason = one_line(error)
        raise JcmError(
            f"cannot read {path} ({reason}): name a sound picture"
        ) from error


def _paths(place: str) -> list[pathlib.Path]:
    """The pictures of a folder, or one picture."""
    if not place:
        raise JcmError("name a picture or a folder of pictures: --edit.input=photo.png")
    path = pathlib.Path(place).expanduser()
    if not path.is_dir():
        return [path]
    found = sorted(each for each in pictures.find(path) if each.parent == path)
    if not found:
        raise JcmError(f"no pictures in {path}: name another folder")
    return found


def _stems(paths: list[pathlib.Path]) -> list[str]:
    """Names of the results; whole names where stems are not enough."""
    stems = [path.stem for path in paths]
    enough = len(set(stems)) == len(stems) and _SUMMARY not in stems
    return stems if enough else [path.name for path in paths]
