"""What the buttons of the page do: they turn pictures and numbers into results."""

import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageChops

from jcm.data import masks, pictures
from jcm.model import build
from jcm.model import pictures as picture_files
from jcm.model.model import Model
from jcm.run import grids
from jcm.runtime.errors import JcmError

ANY = "any class"

Picture = Image.Image | pathlib.Path | None
"""A picture of any size, which may be in a file, or none."""

# The most pixels of all pictures of a call together.
_PIXELS = 2**26
# Smaller pictures are enlarged to at least this size, without smoothing, so that users
# can see them and draw on them.
_VISIBLE = 256
# The image size for which Song et al. 2023 chose the noise level of strokes.
_PAPER_SIZE = 256
# How the page takes images from the model.
_QUIET: dict[str, Any] = {"output": "uint8", "progress": False}


@dataclasses.dataclass(frozen=True)
class Shown:
    """What the page shows as a result.

    Attributes:
      pictures: enlarged pictures.
      line: the time and number of network evaluations that they took.
    """

    pictures: list[UInt8[np.ndarray, "h w 3"]]
    line: str


@dataclasses.dataclass(frozen=True)
class _Time:
    """The seconds that a call took, and whether it compiled a program."""

    seconds: float
    compiled: bool


@dataclasses.dataclass(frozen=True)
class Common:
    """The settings that all actions share.

    Attributes:
      seed: seed of the noise.
      count: number of results.
      label: name of a class of the model; `ANY` for every class in turn.
    """

    seed: int = 0
    count: int = 4
    label: str = ANY


class Actions:
    """The actions of one model.

    All of them raise JcmError for pictures or numbers that do not fit.
    """

    def __init__(self, model: Model):
        """Compiles nothing yet."""
        self.model = model
        arch = model.denoiser.network.arch
        self.size, self.channels = arch.image_size, arch.image_channels

    def factors(self) -> list[int]:
        """Returns the factors by which super-resolution can enlarge a picture."""
        return [n for n in range(2, self.size // 2 + 1) if self.size % n == 0]

    def sample(self, common: Common, steps: int) -> Shown:
        """Samples images.

        Args:
          common: the settings that all actions share.
          steps: number of steps; for a diffusion model, of points of the noise grid.
        """
        model = self.model
        schedule = build.schedule(model.config, model.denoiser, steps=steps)
        made, time_taken = _timed(
            lambda: model.sample(
                common.count,
                seed=common.seed,
                steps=steps,
                labels=self._label(common),
                **_QUIET,
            )
        )
        shown = () if schedule.is_ode else schedule.sigmas
        levels = ", ".join(f"{sigma:.3g}" for sigma in shown)
        plural = "s" * (schedule.nfe > 1)
        noise = f" at noise level{plural} {levels}" if levels else ""
        return self._shown(made, time_taken, schedule.nfe, noise)

    def picture(self, common: Common) -> UInt8[np.ndarray, "h w 3"]:
        """Samples one image to edit, and enlarges it."""
        label = self._label(common)
        made = self.model.sample(1, seed=common.seed, labels=label, **_QUIET)
        return _enlarged(made)[0]

    def seen(self, given: Picture) -> UInt8[np.ndarray, "h w 3"]:
        """Returns a picture of any size as the model sees it, enlarged."""
        return _enlarged(self._given(given))[0]

    def paper(self) -> UInt8[np.ndarray, "h w 3"]:
        """Returns a canvas to draw on, in black or white.

        It has the colour that is closer to the corners of samples.
        """
        made = self.model.sample(8, **_QUIET)[:, [0, 0, -1, -1], [0, -1, 0, -1]]
        colour = 255 if np.mean(made) > 127.5 else 0
        return np.full((_VISIBLE, _VISIBLE, 3), colour, np.uint8)

    def stroke_sigma(self) -> float:
        """Returns the default noise level of strokes.

        The level of the paper is for 256x256. The same noise hides more of a smaller
        image, since the eye averages fewer pixels.
        """
        first, _ = self.model.edit.sigmas("stroke_to_image")
        return first * min(1.0, self.size / _PAPER_SIZE) ** 0.5

    def inpaint(
        self, common: Common, given: Picture, painted: Sequence[Picture]
    ) -> Shown:
        """Replaces the part of a picture that is painted over.

        Args:
          common: the settings that all actions share.
          given: a picture of any size.
          painted: pictures of the same size; each pixel of the model where one of them
            is not transparent is replaced.
        """
        image = _decoded(given)
        x = self._square(image)
        size, left = image.size, _PIXELS - image.width * image.height
        del image
        alpha = None
        for layer in painted:
            over = _alpha(_decoded(layer, left))
            if alpha is not None and over.size != alpha.size:
                raise JcmError("the layers differ in size: give them the same size")
            alpha = over if alpha is None else ImageChops.screen(alpha, over)
            left -= over.width * over.height
        if alpha is None or not alpha.getbbox():
            raise JcmError("paint over the part to replace")
        mask = masks.of_picture(
            alpha, self.size, "the painted part", {"the picture": size}
        )
        before = np.where(mask[..., None] > 0, np.uint8(127), x[0])[None]
        return self._edit("inpaint", common, x, before=before, mask=mask)

    def colorize(self, common: Common, given: Picture) -> Shown:
        """Gives new colours to a picture, of which only the luma is used."""
        x = self._given(given)
        grey = pictures.to_square(Image.fromarray(x[0]), self.size, 1)
        before = np.repeat(grey, 3, axis=2)[None]
        return self._edit("colorize", common, before, before=before)

    def super_resolve(self, common: Common, given: Picture, factor: int) -> Shown:
        """Shrinks a picture, and enlarges the small one."""
        if factor not in self.factors():
            raise JcmError(f"the factor {factor} does not divide {self.size}")
        x = self._given(given, self.size // factor)
        return self._edit("super_resolve", common, x, before=x)

    def stroke_to_image(self, common: Common, given: Picture, sigma: float) -> Shown:
        """Makes a picture from rough strokes, which noise of level `sigma` hides."""
        x = self._given(given)
        first, second = self.model.edit.sigmas("stroke_to_image")
        levels = (sigma, sigma * second / first)
        return self._edit("stroke_to_image", common, x, before=x, sigmas=levels)

    def interpolate(self, common: Common, other: int) -> Shown:
        """Returns a strip of images from that of one seed to that of another."""
        chosen = self._label(common)
        options: dict[str, Any] = {} if chosen is None else {"labels": chosen}
        seeds, count = (common.seed, other), max(common.count, 2)
        made, time_taken = _timed(
            lambda: self.model.edit.interpolate(seeds, count, **options, **_QUIET)
        )
        evaluations = len(self.model.edit.sigmas("interpolate"))
        shown = self._shown(made, time_taken, evaluations)
        scale = -(-_VISIBLE // (2 * self.size))
        strip = grids.grid(made, columns=len(made), scale=scale)
        return dataclasses.replace(shown, pictures=[strip])

    def _edit(
        self,
        task: str,
        common: Common,
        given: UInt8[np.ndarray, "1 h w c"],
        *,
        before: UInt8[np.ndarray, "1 h2 w2 c2"],
        sigmas: tuple[float, ...] | None = None,
        **options: Any,
    ) -> Shown:
        """Runs an edit; shows the results after the picture they were made from."""
        levels = sigmas or self.model.edit.sigmas(task)
        made, time_taken = _timed(
            lambda: getattr(self.model.edit, task)(
                given,
                seed=common.seed,
                variants=common.count,
                sigmas=levels,
                labels=self._label(common),
                **options,
                **_QUIET,
            )
        )
        shown = self._shown(made, time_taken, len(levels))
        return dataclasses.replace(shown, pictures=_enlarged(before) + shown.pictures)

    def _given(self, given: Picture, size: int = 0) -> UInt8[np.ndarray, "1 h w c"]:
        """Returns a picture of any size as the model takes it."""
        return self._square(_decoded(given), size)

    def _square(
        self, image: Image.Image, size: int = 0
    ) -> UInt8[np.ndarray, "1 h w c"]:
        """Returns a picture as the model takes it, or smaller."""
        return pictures.to_square(image, size or self.size, self.channels)[None]

    def _label(self, common: Common) -> str | None:
        """Returns the class to pass to the model; None for every class in turn."""
        return None if common.label == ANY else common.label

    def _shown(
        self,
        pixels: UInt8[np.ndarray, "n h w c"],
        time_taken: _Time,
        evaluations: int,
        noise: str = "",
    ) -> Shown:
        """Enlarges results, and describes what they took."""
        each = time_taken.seconds / len(pixels)
        took = f"{each:.1f} s" if each >= 1 else f"{1000 * each:.0f} ms"
        plural = "s" * (evaluations > 1)
        line = f"{took} per picture, {evaluations} network evaluation{plural}{noise}"
        if time_taken.compiled:
            line += " (with compilation, which happens only once)"
        return Shown(_enlarged(pixels), line)


def _decoded(given: Picture, most: int = _PIXELS) -> Image.Image:
    """Returns a picture as it is seen.

    Raises:
      JcmError: if there is none, if its file cannot be read, or if it has more than
        `most` pixels.
    """
    if given is None:
        raise JcmError("there is no picture yet: drop one, draw one, or take a sample")
    if isinstance(given, Image.Image):
        return pictures.as_seen(given)
    try:
        return picture_files.decoded(given, most)
    except JcmError as error:  # users do not know the folder of uploads
        raise JcmError(str(error).replace(str(given), given.name)) from error


def _alpha(image: Image.Image) -> Image.Image:
    """Returns how opaque the pixels of an image are."""
    if "A" in image.getbands():
        return image.getchannel("A")
    return Image.new("L", image.size, 255)


def _enlarged(pixels: UInt8[np.ndarray, "n h w c"]) -> list[np.ndarray]:
    """Returns pictures in colour and large enough to see."""
    scale = -(-_VISIBLE // max(pixels.shape[1:3]))
    large = pixels.repeat(scale, axis=1).repeat(scale, axis=2)
    return list(np.broadcast_to(large, (*large.shape[:3], 3)).copy())


def _timed(function: Callable[[], Any]) -> tuple[Any, _Time]:
    """Calls a function; returns its result and the time it took."""
    before, started = _compilations().copy(), time.monotonic()
    result = function()
    seconds = time.monotonic() - started
    return result, _Time(seconds, compiled=_compilations() != before)


@functools.cache
def _compilations() -> list[str]:
    """Returns a list that grows with each compilation after the first call."""
    found: list[str] = []

    def listen(event: str, duration_secs: float, **rest: Any) -> None:
        del duration_secs, rest
        if event.endswith("backend_compile_duration"):
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return found
