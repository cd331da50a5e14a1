"""What the buttons of the page do: pictures and numbers in, pictures and a line out."""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from jcm.data import images, pictures
from jcm.model import build
from jcm.model.editor import Edited
from jcm.model.model import Model
from jcm.run import grids
from jcm.runtime.errors import JcmError

ANY = "any class"
# Smaller pictures are enlarged to this at least, without smoothing: to see them, and
# to draw on them.
_VISIBLE = 256
_PAPER_SIZE = 256
# The share of a pixel of the model that must be painted over.
_PAINTED = 0.05


@dataclasses.dataclass(frozen=True)
class Shown:
    """What the page shows: enlarged pictures, and what they cost."""

    pictures: list[UInt8[np.ndarray, "h w 3"]]
    line: str


@dataclasses.dataclass(frozen=True)
class Common:
    """What all actions ask for.

    Attributes:
      seed: of the noise.
      count: results.
      label: a class of the model by name; `ANY` for every class in turn.
    """

    seed: int = 0
    count: int = 4
    label: str = ANY


class Actions:
    """The actions of one model.

    All raise JcmError for pictures or numbers that do not fit.
    """

    def __init__(self, model: Model):
        """Compiles nothing yet."""
        self.model = model
        arch = model.denoiser.network.arch
        self.size, self.channels = arch.image_size, arch.image_channels

    def factors(self) -> list[int]:
        """How many times super-resolution can enlarge."""
        return [n for n in range(2, self.size // 2 + 1) if self.size % n == 0]

    def sample(self, common: Common, steps: int) -> Shown:
        """Images of noise; `steps` is the number of points of a diffusion model."""
        schedule = build.schedule_with_steps(
            self.model.config, self.model.denoiser, steps
        )
        if self.model.kind == "consistency":
            how: dict[str, Any] = {"sigmas": schedule.sigmas}
        else:
            how = {"steps": steps}
        made, seconds = _timed(
            lambda: self.model.sample(
                common.seed, common.count, labels=self._label(common), **how
            )
        )
        levels = ", ".join(f"{sigma:.3g}" for sigma in how.get("sigmas", ()))
        start = f", from noise {levels}" if levels else ""
        return self._shown(images.to_uint8(made), seconds, schedule.nfe, start)

    def picture(self, common: Common) -> UInt8[np.ndarray, "h w 3"]:
        """One image of the model, enlarged, to be changed."""
        made = self.model.sample(common.seed, 1, labels=self._label(common))
        return _enlarged(images.to_uint8(made))[0]

    def seen(self, given: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
        """A picture of any size as the model will see it, enlarged."""
        return _enlarged(self._given(given))[0]

    def paper(self) -> UInt8[np.ndarray, "h w 3"]:
        """Black or white to draw on, whichever is nearer to corners of samples."""
        made = self.model.sample(0, 8)[:, [0, 0, -1, -1], [0, -1, 0, -1]]
        colour = 255 if np.mean(made) > 0 else 0
        return np.full((_VISIBLE, _VISIBLE, 3), colour, np.uint8)

    def stroke_sigma(self) -> float:
        """Noise to begin with for strokes.

        The paper's level is for 256x256. Of smaller images the same noise hides more,
        since fewer pixels are averaged by the eye.
        """
        first, _ = self.model.edit.sigmas("stroke_to_image")
        return first * min(1.0, self.size / _PAPER_SIZE) ** 0.5

    def inpaint(
        self, common: Common, given: Image.Image | None, painted: Image.Image | None
    ) -> Shown:
        """Makes anew what is painted over.

        Args:
          common: what all actions ask for.
          given: a picture of any size.
          painted: of the same size; opaque where it is painted over.
        """
        x = self._given(given)
        if painted is None:
            raise JcmError("paint over what is to be made anew")
        alpha = np.asarray(painted.convert("RGBA"))[..., 3]
        share = pictures.to_square(Image.fromarray(alpha), self.size, 1)[..., 0] / 255
        mask = (share > _PAINTED).astype(np.float32)
        if not mask.any():
            raise JcmError("paint over what is to be made anew")
        before = np.where(mask[..., None] > 0, np.uint8(127), x[0])[None]
        return self._edit("inpaint", common, x, before=before, mask=mask)

    def colorize(self, common: Common, given: Image.Image | None) -> Shown:
        """Other colours, of which a grey picture has none."""
        x = self._given(given)
        grey = pictures.to_square(Image.fromarray(x[0]), self.size, 1)
        before = np.repeat(grey, 3, axis=2)[None]
        return self._edit("colorize", common, before, before=before)

    def super_resolve(
        self, common: Common, given: Image.Image | None, factor: int
    ) -> Shown:
        """Makes a picture small, and large again."""
        if factor not in self.factors():
            raise JcmError(f"a factor of {factor} does not divide {self.size}")
        x = self._given(given, self.size // factor)
        return self._edit("super_resolve", common, x, before=x)

    def stroke_to_image(
        self, common: Common, given: Image.Image | None, sigma: float
    ) -> Shown:
        """A picture of rough strokes; `sigma` hides what is to be made anew."""
        x = self._given(given)
        first, second = self.model.edit.sigmas("stroke_to_image")
        levels = (sigma, sigma * second / first)
        return self._edit("stroke_to_image", common, x, before=x, sigmas=levels)

    def interpolate(self, common: Common, other: int) -> Shown:
        """A strip from the image of one seed to that of another."""
        chosen = self._label(common)
        options = {} if chosen is None else {"labels": chosen}
        seeds, count = (common.seed, other), max(common.count, 2)
        made, seconds = _timed(
            lambda: self.model.edit.interpolate(seeds, count, **options)
        )
        shown = self._shown(made.pixels, seconds, made.nfe)
        scale = -(-_VISIBLE // (2 * self.size))
        strip = grids.grid(made.pixels, columns=len(made.pixels), scale=scale)
        return dataclasses.replace(shown, pictures=[strip])

    def _edit(
        self,
        task: str,
        common: Common,
        given: UInt8[np.ndarray, "1 h w c"],
        *,
        before: UInt8[np.ndarray, "1 h2 w2 c2"],
        **options: Any,
    ) -> Shown:
        """Results after what they were made of."""
        routine: Callable[..., Edited] = getattr(self.model.edit, task)
        made, seconds = _timed(
            lambda: routine(
                given,
                seed=common.seed,
                variants=common.count,
                labels=self._label(common),
                **options,
            )
        )
        shown = self._shown(made.pixels, seconds, made.nfe)
        return dataclasses.replace(shown, pictures=_enlarged(before) + shown.pictures)

    def _given(
        self, image: Image.Image | None, size: int = 0
    ) -> UInt8[np.ndarray, "1 h w c"]:
        if image is None:
            raise JcmError("there is no picture yet: drop one, draw, or take a sample")
        return pictures.to_square(image, size or self.size, self.channels)[None]

    def _label(self, common: Common) -> str | None:
        return None if common.label == ANY else common.label

    def _shown(
        self,
        pixels: UInt8[np.ndarray, "n h w c"],
        seconds: tuple[float, bool],
        evaluations: int,
        more: str = "",
    ) -> Shown:
        total, compiled = seconds
        each = total / len(pixels)
        took = f"{each:.1f} s" if each >= 1 else f"{1000 * each:.0f} ms"
        plural = "s" * (evaluations > 1)
        line = f"{took} per picture, {evaluations} network evaluation{plural}{more}"
        if compiled:
            line += " (the first time, with compilation: press again)"
        return Shown(_enlarged(pixels), line)


def _enlarged(pixels: UInt8[np.ndarray, "n h w c"]) -> list[np.ndarray]:
    scale = -(-_VISIBLE // max(pixels.shape[1:3]))
    large = pixels.repeat(scale, axis=1).repeat(scale, axis=2)
    return list(np.broadcast_to(large, (*large.shape[:3], 3)).copy())


def _timed(make: Callable[[], Any]) -> tuple[Any, tuple[float, bool]]:
    """What it makes, the seconds it took, and whether it compiled something."""
    before, started = _compilations().copy(), time.monotonic()
    made = make()
    seconds = time.monotonic() - started
    return made, (seconds, _compilations() != before)


@functools.cache
def _compilations() -> list[str]:
    """Grows with each compilation of this process, from the first call on."""
    found: list[str] = []

    def listen(event: str, seconds: float, **rest: Any) -> None:
        del seconds, rest
        if event.endswith("backend_compile_duration"):
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return found
