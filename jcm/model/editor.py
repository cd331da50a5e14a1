"""Editing with a consistency model: `model.edit.inpaint(...)` and others.

Every method takes one or several images of the model's size, as uint8 arrays, as float
arrays in [-1, 1] or as Pillow's images, and returns `Edited`. Result i * variants + j
is variant j of image i. Its noise depends only on this number and the seed.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Array, Float, Int, Key, UInt8
from ml_collections import ConfigDict
from PIL import Image

from jcm.data import images, inputs
from jcm.data.inputs import ImagesLike
from jcm.diffusion import edits
from jcm.diffusion.edits import Colours, Known, Patches, Pixels
from jcm.diffusion.sampler import Sampler
from jcm.model import build
from jcm.model.labels import Labels, image_labels
from jcm.networks import Params
from jcm.runtime.arrays import AnyArray, as_key
from jcm.runtime.errors import JcmError

# (x, sigma, labels) -> x0
Denoise = Callable[
    [Float[AnyArray, "n h w c"], Float[AnyArray, " n"], Int[AnyArray, " n"] | None],
    Float[Array, "n h w c"],
]

# Number of points in the noise grid of editing (Song et al. 2023, Appendix D). The last
# is sigma_min, where f is the identity, so it is left out.
_STEPS = 40
# Noise levels of stroke-to-image in two steps (Appendix D).
_STROKE = (5.38, 2.24)
_VARIATION = 2.0


@dataclasses.dataclass(frozen=True)
class Edited:
    """The result of an edit.

    Attributes:
      images: in [-1, 1]; slightly outside if the known part of an image requires it.
      nfe: number of network evaluations for each image.
      trajectory: clean images after each step; empty unless asked for.
    """

    images: Float[np.ndarray, "n h w c"]
    nfe: int
    trajectory: tuple[Float[np.ndarray, "n h w c"], ...] = ()

    @property
    def pixels(self) -> UInt8[np.ndarray, "n h w c"]:
        """The images as pixels, clipped and rounded."""
        return images.to_uint8(self.images)


class Editor:
    """The edits that a consistency model can do without being trained for them.

    All methods but `denoise`, which has its own, take these options:
      seed: a JAX key or an integer.
      variants: number of results for each image, with different noise.
      sigmas: descending noise levels, one for each step; by default the paper's.
      labels: classes of a class-conditional model by number or name, one for all images
        or one for each; by default those of the config, or else every class in turn.
      trajectory: whether to keep the clean images after each step.
      visit: called with the clean images of each batch after each step.
      noisy: whether to add the first noise. The notebook of the original code does not.
      first: number of the first result, to make a part of a larger set of results.

    All methods raise JcmError if images, masks, noise levels or labels do not fit the
    model.
    """

    def __init__(
        self,
        sampler: Sampler,
        params: Params,
        config: ConfigDict,
        class_names: Sequence[str],
        denoise: Denoise,
    ):
        """Creates the editor of a model; `Model.edit` does.

        Args:
          sampler: of the model's denoiser.
          params: parameters of the denoiser.
          config: has the noise levels, and the labels to use by default.
          class_names: names of the classes 0, 1, ...
          denoise: f(x, sigma), compiled.

        Raises:
          JcmError: for a diffusion model.
        """
        if sampler.denoiser.kind != "consistency":
            raise JcmError("editing needs a consistency model: distil this one first")
        self._sampler, self._params, self._denoise = sampler, params, denoise
        self._config, self._class_names = config, class_names
        self._shape = sampler.denoiser.image_shape
        self._size, _, self._channels = self._shape

    def inpaint(
        self, given: ImagesLike, mask: AnyArray | Image.Image, **options: Any
    ) -> Edited:
        """Replaces a part of each image; the rest keeps its values to the bit.

        Args:
          given: images; their content under the mask does not matter.
          mask: 1 (or True, or white) where the image is replaced, 0 where it is kept,
            or values between: (h, w) for all images, or (n, h, w).
          **options: see the class.
        """
        x = self._images(given)
        free = inputs.as_mask(mask, len(x), self._size)
        return self._edit(edits.known(Pixels(), x, free), **options)

    def outpaint(
        self, given: ImagesLike, top: int = 0, left: int = 0, **options: Any
    ) -> Edited:
        """Extends smaller images to the model's size.

        Args:
          given: images of any size that fits into the model's.
          top: row of the result at which they begin.
          left: column at which they begin.
          **options: see the class.
        """
        x = self._images(given, any_size=True)
        height, width = x.shape[1:3]
        if min(top, left) < 0 or max(top + height, left + width) > self._size:
            raise JcmError(
                f"images of {width}x{height} at top={top}, left={left} do not fit into"
                f" {self._size}x{self._size}"
            )
        rows, columns = slice(top, top + height), slice(left, left + width)
        canvas = np.zeros((len(x), *self._shape), np.float32)
        canvas[:, rows, columns] = x
        mask = np.ones((self._size, self._size))
        mask[rows, columns] = 0
        return self.inpaint(canvas, mask, **options)

    def colorize(self, given: ImagesLike, **options: Any) -> Edited:
        """Colours grey images, keeping their luma.

        Args:
          given: images, of which only the luma is used.
          **options: see the class.
        """
        if self._channels != 3:
            raise JcmError("the model makes grey images: use a model of colour images")
        x = self._images(given)
        free = np.asarray([0.0, 1.0, 1.0], np.float32)
        return self._edit(edits.known(Colours(), x, free), **options)

    def super_resolve(self, given: ImagesLike, **options: Any) -> Edited:
        """Enlarges images; the means of the result's patches are the given pixels.

        Args:
          given: square images whose size divides the model's.
          **options: see the class.
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
        free[::factor, ::factor] = 0  # where `Patches` has the mean
        return self._edit(edits.known(Patches(factor), x, free), **options)

    def stroke_to_image(self, given: ImagesLike, **options: Any) -> Edited:
        """Turns rough strokes into images (SDEdit, Meng et al. 2022).

        Args:
          given: images of strokes.
          **options: see the class. The first of `sigmas` is the noise that hides the
            details to be replaced: by default (5.38, 2.24), the paper's levels for
            256x256. Lower ones stay closer to the strokes. Small images need lower
            ones: about (1, 0.5) at 16x16.
        """
        options = {"sigmas": self.sigmas("stroke_to_image"), **options}
        return self._edit(None, self._images(given), **options)

    def sigmas(self, task: str) -> tuple[float, ...]:
        """Returns the default noise levels of a method.

        Args:
          task: name of the method, such as "inpaint".
        """
        grid = build.grid(self._config).sigmas(_STEPS)[:-1]
        return {
            "stroke_to_image": _STROKE,
            "variations": (_VARIATION,),
            "interpolate": tuple(grid[:1]),
        }.get(task, tuple(grid))

    def variations(
        self, given: ImagesLike, sigma: float = _VARIATION, **options: Any
    ) -> Edited:
        """Makes images like the given ones: adds noise and removes it.

        Args:
          given: images.
          sigma: noise level; the higher, the less the results resemble the images.
          **options: see the class; `variants` makes several for each image.
        """
        return self._edit(None, self._images(given), **{"sigmas": (sigma,), **options})

    def denoise(
        self,
        given: ImagesLike,
        sigma: float | Sequence[float] | Float[AnyArray, " n"] | None = None,
        labels: Labels = None,
        trajectory: bool = False,
    ) -> Edited:
        """Removes white noise from images in one evaluation, as f(x, sigma).

        Args:
          given: x0 + sigma z with x0 in [-1, 1] and z standard normal, not clipped.
          sigma: noise level, of all images or of each; None estimates that of each by
            `edits.noise_level`.
          labels: see the class.
          trajectory: see the class; the images after the one step are the result.
        """
        x = self._images(given, noisy=True)
        levels = self._noise_levels(x, sigma)
        labels = self._labels(labels, len(x))
        labels = None if labels is None else np.asarray(labels)
        x0 = np.clip(self._denoise(x, levels, labels), -1, 1)
        return Edited(x0, nfe=1, trajectory=(x0,) if trajectory else ())

    def interpolate(
        self,
        seeds: Sequence[int],
        count: int = 8,
        **options: Any,
    ) -> Edited:
        """Interpolates between the images of several seeds (spherical, in the noise).

        Args:
          seeds: at least two.
          count: number of images from each seed to the next, including both ends.
          **options: see the class. By default one step is taken, and a
            class-conditional model uses its first class.

        Returns:
          `Edited` with (len(seeds) - 1) (count - 1) + 1 images.
        """
        if len(seeds) < 2 or count < 2:
            raise JcmError("interpolation needs at least two seeds and two images")
        noises = [jax.random.normal(as_key(seed), self._shape) for seed in seeds]
        between = [
            edits.slerp(a, b, i / (count - 1))
            for a, b in zip(noises, noises[1:], strict=False)
            for i in range(count - 1)
        ]
        if self._sampler.denoiser.num_classes:
            options = {"labels": 0, **options}
        return self.between(jnp.stack([*between, noises[-1]]), **options)

    def between(self, noises: Float[AnyArray, "n h w c"], **options: Any) -> Edited:
        """Makes the images of given noise.

        Args:
          noises: standard normal, such as the results of `edits.slerp`.
          **options: see the class; by default one step is taken.
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
        """Runs Algorithm 4 of Song et al. 2023 for any linear map, mask and noise.

        Args:
          known: the known part of the images, in any coordinates; see `edits.known`.
          origin: images that the first noise is added to; by default the known part,
            with zeros for the rest.
          **options: see the class.
        """
        for array in (known.values, known.free, origin):
            if array is not None and np.shape(array)[1:] != self._shape:
                raise JcmError(
                    f"arrays of shape {np.shape(array)}: the model takes (n,"
                    f" {', '.join(map(str, self._shape))})"
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
        """Runs the sampler from `origin`, putting back `known` after each step."""
        if sigmas is None:
            sigmas = self.sigmas("run")
        schedule = build.schedule(self._config, self._sampler.denoiser, sigmas=sigmas)
        if variants < 1:
            raise JcmError(f"variants={variants} must be at least 1")
        if origin is None:
            origin = known.origin()
        labels = self._labels(labels, len(origin))
        # Every variant of an image has the same label, origin and known part.
        labels, known, origin = jax.tree.map(
            lambda array: np.repeat(np.asarray(array), variants, axis=0),
            (labels if labels is None else np.asarray(labels), known, origin),
        )
        visited: list[np.ndarray] = []

        def keep(clean: np.ndarray) -> None:
            visited.append(clean)
            if visit is not None:
                visit(clean)

        made = self._sampler(
            self._params,
            as_key(seed),
            range(first, first + len(origin)),
            schedule,
            labels,
            origin=origin,
            known=known,
            noisy=noisy,
            visit=keep if trajectory else visit,
        )
        # `visited` has batch after batch, and all steps of each.
        steps = tuple(
            np.concatenate(visited[i :: schedule.nfe])
            for i in range(schedule.nfe if trajectory else 0)
        )
        return Edited(made, schedule.nfe, steps)

    def _labels(self, labels: Labels, count: int) -> list[int] | None:
        """Returns the number of the class of each of `count` images, or None."""
        several = labels is not None and not isinstance(labels, int | str)
        if several and len(labels) != count:
            raise JcmError(
                f"{len(labels)} labels for {count} images: pass one for each"
            )
        denoiser = self._sampler.denoiser
        return image_labels(self._config, count, denoiser, self._class_names, labels)

    def _noise_levels(
        self,
        x: Float[np.ndarray, "n h w c"],
        sigma: float | Sequence[float] | Float[AnyArray, " n"] | None,
    ) -> Float[np.ndarray, " n"]:
        """Returns the noise level of each image, estimated if `sigma` is None."""
        noise = self._config.noise
        levels = edits.noise_level(x) if sigma is None else np.asarray(sigma)
        if levels.shape not in ((), (1,), (len(x),)):
            raise JcmError(
                f"{levels.size} noise levels for {len(x)} images: pass one for each"
            )
        levels = np.broadcast_to(levels, len(x)).astype(np.float32)
        if sigma is None:
            levels = np.clip(levels, noise.sigma_min, noise.sigma_max)
            logging.info(
                "estimated noise levels: median %.3g, from %.3g to %.3g",
                *(np.median(levels), levels.min(), levels.max()),
            )
        # Comparisons with NaN are false, so this also rejects NaN.
        if not np.all((levels >= noise.sigma_min) & (levels <= noise.sigma_max)):
            raise JcmError(
                f"sigma={sigma} must lie within the model's noise levels,"
                f" {noise.sigma_min} to {noise.sigma_max}"
            )
        return levels

    def _images(
        self, given: ImagesLike, any_size: bool = False, noisy: bool = False
    ) -> Float[np.ndarray, "n h w c"]:
        """Returns images as an array in [-1, 1]; see `inputs.as_images`."""
        size = None if any_size else self._size
        return inputs.as_images(given, self._channels, size, noisy=noisy)
