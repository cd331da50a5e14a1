"""Editing of picture files: `--mode=edit`."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable

import jax
import numpy as np
import tqdm
from absl import logging
from jaxtyping import UInt8
from ml_collections import ConfigDict
from PIL import Image

from jcm import files, grids, model, pictures
from jcm.editor import Edited
from jcm.errors import JcmError

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


@dataclasses.dataclass(frozen=True)
class Request:
    """What to do.

    Attributes:
      task: one of `TASKS`.
      input: a picture or a folder of pictures; not for "interpolate".
      output: folder for the results, new or empty.
      mask: "inpaint": a picture, white where anything may be.
      factor: "super_resolve" and "outpaint": how many times the input's height and
        width the result has.
      sigmas: noise levels of the steps; empty for those of the paper.
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
    if request.task not in TASKS:
        raise JcmError(f"--edit.task={request.task!r}: use one of {', '.join(TASKS)}")
    if not request.output:
        raise JcmError("name a folder for the results: --edit.output=out")
    output = files.new_folder(request.output)
    trained = model.of_config(config, workdir)
    if request.task == "interpolate":
        label, *_ = (*config.sample.labels, None)
        count = config.sample.num_images
        pixels = trained.edit.interpolate(request.seeds, count, label).pixels
        panels = {"interpolation": grids.grid(pixels, columns=count)}
        names = [f"{i:03d}" for i in range(len(pixels))]
    else:
        paths = _paths(request.input)
        given = _given(trained, request, paths)
        made = _run(trained, request, config, given)
        pixels = made.pixels
        names = [
            f"{stem}_{j}" if request.variants > 1 else stem
            for stem in _stems(paths)
            for j in range(request.variants)
        ]
        shown = slice(_SHOWN)
        panels = {
            "before": grids.grid(given[shown]),
            f"after, {made.nfe} evaluations": grids.grid(
                pixels[:: request.variants][shown]
            ),
        }
    if jax.process_index() == 0:
        for name, image in zip(names, pixels, strict=True):
            colour = np.broadcast_to(image, (*image.shape[:2], 3))
            grids.save_png(output / f"{name}.png", np.ascontiguousarray(colour))
        grids.save_png(output / "before_after.png", grids.captioned(panels))
        logging.info("wrote %d pictures to %s", len(pixels), output)


def _run(
    trained: model.Model,
    request: Request,
    config: ConfigDict,
    given: UInt8[np.ndarray, "n h w c"],
) -> Edited:
    """All pictures; a bar shows the steps."""
    labels = list(config.sample.labels) or None
    if labels:
        labels = [labels[i % len(labels)] for i in range(len(given))]
    if request.task == "denoise":
        return trained.edit.denoise(given, labels=labels)
    sigmas = request.sigmas or trained.edit.sigmas(request.task)
    steps = len(given) * request.variants * len(sigmas)
    with tqdm.tqdm(total=steps, desc=request.task, unit="evaluation") as progress:
        return _call(trained, request)(
            given,
            sigmas=sigmas,
            seed=config.sample.seed,
            variants=request.variants,
            labels=labels,
            visit=lambda clean: progress.update(len(clean)),
        )


def _call(trained: model.Model, request: Request) -> Callable[..., Edited]:
    """The routine of a task, with what it needs beside the pictures."""
    routine = getattr(trained.edit, request.task)
    if request.task == "inpaint":
        if not request.mask:
            raise JcmError("inpainting needs a mask: --edit.mask=mask.png")
        arch = trained.denoiser.network.arch
        mask = _read(pathlib.Path(request.mask), arch.image_size, 1)[..., 0] / 255
        return functools.partial(routine, mask=mask)
    if request.task == "outpaint":
        size = trained.denoiser.network.arch.image_size
        begin = (size - size // request.factor) // 2
        return functools.partial(routine, top=begin, left=begin)
    return routine


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
    try:
        with Image.open(path) as file:
            mode, width, height = file.mode, *file.size
        image = pictures.read(path, size, channels)
    # Pillow's decoders raise a dozen kinds of exception for broken files.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise JcmError(
            f"cannot read {path} ({reason}): name a sound picture"
        ) from error
    wanted = ("RGB" if channels == 3 else "L", size, size)
    if (mode, width, height) != wanted:
        logging.info(
            "%s, %s of %dx%d, is used as %s of %dx%d",
            *(path, mode, width, height),
            *wanted,
        )
    return image


def _paths(place: str) -> list[pathlib.Path]:
    """The pictures of a folder, or one picture."""
    if not place:
        raise JcmError("name a picture or a folder of pictures: --edit.input=photo.png")
    path = pathlib.Path(place).expanduser()
    if not path.is_dir():
        return [path]
    found = sorted(p for p in path.iterdir() if p.suffix.lower() in pictures.SUFFIXES)
    if not found:
        raise JcmError(f"no pictures in {path}: name another folder")
    return found


def _stems(paths: list[pathlib.Path]) -> list[str]:
    """Names of the results; whole names where two differ in their suffix alone."""
    stems = [path.stem for path in paths]
    return stems if len(set(stems)) == len(stems) else [path.name for path in paths]
