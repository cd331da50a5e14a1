"""Editing with a model: `model.edit.inpaint(...)` and the like.

Every routine takes images as uint8 arrays, float arrays in [-1, 1] or Pillow's images,
one or several of the model's size, and gives `Edited`. Result number i * variants + j
is variant j of image i; the noise of each depends on its number and the seed alone.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Array, Float, Key, UInt8
from PIL import Image

from jcm.data import images, inputs
from jcm.data.inputs import Pictures
from jcm.diffusion import edits
from jcm.diffusion.edits import Colours, Known, Patches, Pixels
from jcm.diffusion.schedule import Schedule
from jcm.model import build
from jcm.runtime.arrays import AnyArray, as_key
from jcm.runtime.errors import JcmError

if TYPE_CHECKING:
    from jcm.model.model import Model

Labels = Sequence[int | str] | int | str | None

# Points of the noise grid that editing visits (Song et al. 2023, Appendix D); the last
# is sigma_min, where f changes nothing.
_STEPS = 40
# Two steps of stroke to image (the same).
_STROKE = (5.38, 2.24)
_VARIATION = 2.0


@dataclasses.dataclass(frozen=True)
class Edited:
    """What an edit gives.

    Attributes:
      images: in [-1, 1], or slightly outside where what is known asks for it.
      nfe: network evaluations for each image.
      trajectory: the clean images after each step, where they were asked for.
    """

    images: Float[np.ndarray, "n h w c"]
    nfe: int
    trajectory: tuple[Float[np.ndarray, "n h w c"], ...] = ()

    @property
    def pixels(self) -> UInt8[np.ndarray, "n h w c"]:
        """The images, clipped and rounded."""
        return images.to_uint8(self.images)


class Editor:
    """The edits that a consistency model can do.

    Options, of which `denoise` takes labels and trajectory alone:
      seed: a JAX key or an integer.
      variants: results for each image, from different noise.
      sigmas: noise levels of the steps, descending; by default those of the paper.
      labels: class of each image by number or name, or one for all, for a
        class-conditional model; by default every class in turn.
      trajectory: keep the clean images after each step.
      visit: called with the clean images of each batch after each step.
      noisy: add the first noise; the notebook of the original code did not.
      first: number of the first result, for a part of a larger set.

    All raise JcmError for images, masks, noise levels or labels that do not fit.
    """

    def __init__(self, model: "Model"):
        """Compiles nothing yet.

        Raises:
          JcmError: for a diffusion model.
        """
        if model.kind != "consistency":
            raise JcmError("editing needs a consistency model: distil this one first")
        self._model = model
        arch = model.denoiser.network.arch
        self._size, self._channels = arch.image_size, arch.image_channels

    def inpaint(
        self, given: Pictures, mask: AnyArray | Image.Image, **options: Any
    ) -> Edited:
        """Makes part of images anew; the rest stays as it is, to the bit.

        Args:
          given: images; what they have under the mask does not count.
          mask: 1 (or True, or white) where anything may be, 0 for what stays, or in
            between: (h, w) for all images, or (n, h, w).
          **options: see the class.

        Returns:
          `Edited`.
        """
        x = self._images(given)
        free = inputs.as_mask(mask, len(x), self._size)
        return self._edit(edits.known(Pixels(), x, free), **options)

    def outpaint(
        self, given: Pictures, top: int = 0, left: int = 0, **options: Any
    ) -> Edited:
        """Makes what is around smaller images.

        Args:
          given: images of any size that fits into the model's.
          top: row of the result where they begin.
          left: column where they begin.
          **options: see the class.

        Returns:
          `Edited`.
        """
        x = self._images(given, any_size=True)
        height, width = x.shape[1:3]
        if min(top, left) < 0 or max(top + height, left + width) > self._size:
            raise JcmError(
                f"images of {width}x{height} at top={top}, left={left} do not fit into"
                f" {self._size}x{self._size}"
            )
        rows, columns = slice(top, top + height), slice(left, left + width)
        canvas = np.zeros((len(x), self._size, self._size, self._channels), np.float32)
        canvas[:, rows, columns] = x
        mask = np.ones((self._size, self._size))
        mask[rows, columns] = 0
        return self.inpaint(canvas, mask, **options)

    def colorize(self, given: Pictures, **options: Any) -> Edited:
        """Colours for grey images; their luma stays as it is.

        Args:
          given: images, of which luma counts.
          **options: see the class.

        Returns:
          `Edited`.
        """
        if self._channels != 3:
            raise JcmError("the model makes grey images: colours need one of colour")
        x = self._images(given)
        free = np.asarray([0.0, 1.0, 1.0], np.float32)
        return self._edit(edits.known(Colours(), x, free), **options)

    def super_resolve(self, given: Pictures, **options: Any) -> Edited:
        """Large images whose means over patches are the given small ones.

        Args:
          given: images whose height and width divide the model's.
          **options: see the class.

        Returns:
          `Edited`.
        """
        x = self._images(given, any_size=True)
        height, width = x.shape[1:3]
        factor, rest = divmod(self._size, height)
        if height != width or rest or factor < 2:
            raise JcmError(
                f"images of {width}x{height}: height and width must be the same, and"
                f" divide the model's {self._size} at least twice"
            )
        x = np.repeat(np.repeat(x, factor, axis=1), factor, axis=2)
        free = np.ones((self._size, self._size, 1), np.float32)
        free[::factor, ::factor] = 0  # where Patches has the mean
        return self._edit(edits.known(Patches(factor), x, free), **options)

    def stroke_to_image(self, given: Pictures, **options: Any) -> Edited:
        """Pictures of rough strokes (SDEdit, Meng et al. 2022).

        Args:
          given: images.
          **options: see the class. `sigmas` begin at the noise that hides what is to
            be made anew: by default (5.38, 2.24), the paper's for 256x256. Lower ones
            stay closer, and small images need lower ones: about (1, 0.5) at 16x16.

        Returns:
          `Edited`.
        """
        options = {"sigmas": self.sigmas("stroke_to_image"), **options}
        return self._edit(None, self._images(given), **options)

    def sigmas(self, task: str) -> tuple[float, ...]:
        """The noise levels that a routine visits by default.

        Args:
          task: its name.
        """
        grid = build.grid(self._model.config).sigmas(_STEPS)[:-1]
        return {
            "stroke_to_image": _STROKE,
            "variations": (_VARIATION,),
            "interpolate": tuple(grid[:1]),
        }.get(task, tuple(grid))

    def variations(
        self, given: Pictures, sigma: float = _VARIATION, **options: Any
    ) -> Edited:
        """Other images like given ones: noise is added and taken away.

        Args:
          given: images.
          sigma: how much noise; the more, the less is like before.
          **options: see the class; `variants` makes several.

        Returns:
          `Edited`.
        """
        return self._edit(None, self._images(given), **{"sigmas": (sigma,), **options})

    def denoise(
        self,
        given: Pictures,
        sigma: float | Sequence[float] | Float[AnyArray, " n"] | None = None,
        labels: Labels = None,
        trajectory: bool = False,
    ) -> Edited:
        """Clean images behind noisy ones, f(x, sigma), in one evaluation.

        Args:
          given: x0 + sigma z with x0 in [-1, 1], not clipped.
          sigma: the noise level, of all or of each; None estimates it of each by
            `editing.noise_level`.
          labels: see the class.
          trajectory: see the class; the one step is the result.

        Returns:
          `Edited`.
        """
        x = self._images(given, noisy=True)
        noise = self._model.config.noise
        levels = edits.noise_level(x) if sigma is None else np.asarray(sigma)
        if levels.shape not in ((), (1,), (len(x),)):
            raise JcmError(f"{levels.size} noise levels for {len(x)} images")
        levels = np.broadcast_to(levels, len(x)).astype(np.float32)
        if sigma is None:
            levels = np.clip(levels, noise.sigma_min, noise.sigma_max)
            logging.info(
                "noise levels of about %.3g (%.3g to %.3g)",
                *(np.median(levels), levels.min(), levels.max()),
            )
        if not (
            np.all(levels >= noise.sigma_min) and np.all(levels <= noise.sigma_max)
        ):
            raise JcmError(
                f"sigma={sigma} must lie within the model's noise levels,"
                f" {noise.sigma_min} to {noise.sigma_max}"
            )
        numbers = self._labels(labels, len(x))
        numbers = None if numbers is None else np.asarray(numbers)
        found = np.clip(self._model.denoise(x, levels, numbers), -1, 1)
        return Edited(found, nfe=1, trajectory=(found,) if trajectory else ())

    def interpolate(
        self,
        seeds: Sequence[int],
        count: int = 8,
        **options: Any,
    ) -> Edited:
        """A way through the images of several seeds, by spherical interpolation.

        Args:
          seeds: of two images or more.
          count: images of the way from each to the next, with both.
          **options: see the class. By default in one step; without labels the way
            stays within the first class.

        Returns:
          `Edited`, with (len(seeds) - 1) (count - 1) + 1 images.
        """
        if len(seeds) < 2 or count < 2:
            raise JcmError("interpolation needs two seeds and two images at least")
        shape = (self._size, self._size, self._channels)
        noises = [jax.random.normal(as_key(seed), shape) for seed in seeds]
        way = [
            edits.slerp(a, b, i / (count - 1))
            for a, b in zip(noises, noises[1:], strict=False)
            for i in range(count - 1)
        ]
        if self._model.denoiser.network.arch.num_classes:
            options = {"labels": 0, **options}
        return self.between(jnp.stack([*way, noises[-1]]), **options)

    def between(self, noises: Float[AnyArray, "n h w c"], **options: Any) -> Edited:
        """Images of given noise.

        Args:
          noises: standard normal, such as `editing.slerp` mixes them.
          **options: see the class; by default in one step.

        Returns:
          `Edited`.
        """
        options = {"sigmas": self.sigmas("interpolate"), **options, "noisy": False}
        origin = np.float32(options["sigmas"][0]) * np.asarray(noises, np.float32)
        return self._edit(None, origin, **options)

    def run(
        self,
        known: Known,
        origin: Float[AnyArray, "n h w c"] | None = None,
        **options: Any,
    ) -> Edited:
        """Algorithm 4 of Song et al. 2023, for any map, mask and noise levels.

        Args:
          known: what is known, in any coordinates; see `editing.known`.
          origin: images that the first noise is added to; by default what is known,
            with zeros for the rest.
          **options: see the class.

        Returns:
          `Edited`.
        """
        shape = (self._size, self._size, self._channels)
        for what in (known.values, known.free, origin):
            if what is not None and np.shape(what)[1:] != shape:
                raise JcmError(
                    f"arrays of shape {np.shape(what)}: the model takes (n,"
                    f" {', '.join(map(str, shape))})"
                )
        return self._edit(known, origin, **options)

    def _edit(
        self,
        known: Known | None,
        origin: Float[AnyArray, "n h w c"] | None = None,
        *,
        seed: Key[Array, ""] | int = 0,
        variants: int = 1,
        sigmas: Sequence[float] | None = None,
        labels: Labels = None,
        trajectory: bool = False,
        visit: Callable[[Float[np.ndarray, "b h w c"]], Any] | None = None,
        noisy: bool = True,
        first: int = 0,
    ) -> Edited:
        model, noise = self._model, self._model.config.noise
        if sigmas is None:
            sigmas = self.sigmas("run")
        schedule = Schedule(tuple(float(sigma) for sigma in sigmas))
        schedule.check(noise.sigma_min, noise.sigma_max)
        if variants < 1:
            raise JcmError(f"variants={variants} must be at least 1")
        if origin is None:
            origin = known.origin()
        given = len(origin)
        numbers = self._labels(labels, given)
        if numbers is not None:
            numbers = [number for number in numbers for _ in range(variants)]
        known, origin = jax.tree.map(
            lambda array: np.repeat(np.asarray(array), variants, axis=0),
            (known, origin),
        )
        visited: list[np.ndarray] = []

        def keep(clean: np.ndarray) -> None:
            visited.append(clean)
            if visit is not None:
                visit(clean)

        made = model.sampler(
            model.params,
            as_key(seed),
            range(first, first + len(origin)),
            schedule,
            numbers,
            origin=origin,
            known=known,
            noisy=noisy,
            visit=keep if trajectory else visit,
        )
        # Batch after batch, each with all steps.
        steps = tuple(
            np.concatenate(visited[i :: schedule.nfe])
            for i in range(schedule.nfe if trajectory else 0)
        )
        return Edited(made, schedule.nfe, steps)

    def _labels(self, labels: Labels, count: int) -> list[int] | None:
        model = self._model
        names = model.class_names
        if labels is None:
            return build.sample_labels(model.config, model.denoiser, names, count)
        if isinstance(labels, int | str):
            labels = [labels] * count
        if len(labels) != count:
            raise JcmError(f"{len(labels)} labels for {count} images: give one each")
        return [build.label_number(label, names) for label in labels]

    def _images(
        self, given: Pictures, any_size: bool = False, noisy: bool = False
    ) -> Float[np.ndarray, "n h w c"]:
        size = None if any_size else self._size
        return inputs.as_images(given, self._channels, size, noisy=noisy)
