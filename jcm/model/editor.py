"""Editing with a consistency model: `model.edit.inpaint(...)` and others."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, Unpack

import jax
import numpy as np
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict
from PIL import Image

from jcm.data import inputs, masks
from jcm.data.inputs import ImagesLike
from jcm.diffusion import edits
from jcm.diffusion.edits import Colours, Known, Patches, Pixels
from jcm.diffusion.sampler import Sampler
from jcm.model import build, edit_levels, results
from jcm.model.build import Levels
from jcm.model.labels import Labels, image_labels, several
from jcm.model.options import Keywords, Options
from jcm.networks import Params
from jcm.runtime.arguments import (
    explained,
    fields_as_keywords,
    no_attribute,
    number,
    optional,
    whole,
)
from jcm.runtime.arrays import AnyArray, Number, Whole, as_key, check_floats
from jcm.runtime.errors import JcmError

# (x, sigma, labels) -> x0
Denoise = Callable[
    [Float[AnyArray, "n h w c"], Float[AnyArray, " n"], Int[AnyArray, " n"] | None],
    Float[Array, "n h w c"],
]

# The methods that are listed for a user.
_EDITS = {
    "inpaint": "replaces what is under a mask",
    "outpaint": "extends smaller images to the model's size",
    "colorize": "colours grey images",
    "super_resolve": "enlarges small images to the model's size",
    "stroke_to_image": "turns rough strokes into images",
    "variations": "makes images like the given ones",
    "denoise": "removes white noise",
    "interpolate": "goes from the image of one seed to that of the next",
}


class Editor:
    """The edits that a consistency model can do without being trained for them.

    Every method takes one or several images: uint8 arrays or float arrays in [-1, 1] of
    the model's size, or Pillow's images, which are turned upright, cropped to their
    central square and resized. It returns the results in the form that `output` names:
    (n * variants, height, width, channels) for n images. Result i * variants + j is
    variant j of image i. Its noise depends only on this number and the seed. Float
    results may lie slightly outside [-1, 1] if the known part of an image requires it.

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
            kind = sampler.denoiser.kind.replace("_", " ")
            raise JcmError(
                f"editing needs a consistency model, and this is a {kind} model: load"
                " another, or distil this one with config.method='cd'"
            )
        self._sampler, self._params, self._denoise = sampler, params, denoise
        self._config, self._class_names = config, class_names
        self._shape = sampler.denoiser.image_shape
        self._size, _, self._channels = self._shape

    if not TYPE_CHECKING:  # it would hide wrong names

        def __getattr__(self, name: str) -> Any:
            raise no_attribute("model.edit", "model.edit", name, dir(type(self)))

    def __repr__(self) -> str:
        lines = [f"  model.edit.{name:17}{does}" for name, does in _EDITS.items()]
        return "\n".join(["The edits; help(model.edit.inpaint) explains one:", *lines])

    def __call__(self, *args: object, **keywords: object) -> NoReturn:
        """Raises JcmError, since each edit is a method."""
        del args, keywords
        raise JcmError(
            "model.edit has a method for each edit: call one, such as"
            f" model.edit.inpaint ({', '.join(_EDITS)})"
        )

    @fields_as_keywords(Options)
    def inpaint(
        self,
        given: ImagesLike,
        mask: AnyArray | Image.Image,
        **options: Unpack[Keywords],
    ) -> Any:
        """Replaces a part of each image; the rest keeps its values to the bit.

        Args:
          given: images; their content under the mask does not matter.
          mask: an array (h, w) for all images, or (n, h, w), of the model's size: 1 (or
            True) where the image is replaced, 0 where it is kept, or values between. Or
            a Pillow image for all images, white where they are replaced and black where
            they are kept. It has their aspect ratio, or is square. Each pixel of the
            model that is painted on at all is replaced.
          options: see `Options`.
        """
        x = self._images(given)
        free = masks.as_mask(mask, inputs.sizes(given, len(x)), self._size)
        return self._inpaint("inpaint", x, free, Options(**options))

    @fields_as_keywords(Options)
    def outpaint(
        self,
        given: ImagesLike,
        top: int = 0,
        left: int = 0,
        **options: Unpack[Keywords],
    ) -> Any:
        """Extends smaller images to the model's size.

        Args:
          given: images of any size that fits into the model's.
          top: row of the result at which they begin.
          left: column at which they begin.
          options: see `Options`.
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
        free = np.ones((1, self._size, self._size, 1), np.float32)
        free[:, rows, columns] = 0
        return self._inpaint("outpaint", canvas, free, Options(**options))

    @fields_as_keywords(Options)
    def colorize(self, given: ImagesLike, **options: Unpack[Keywords]) -> Any:
        """Colours grey images, keeping their luma.

        Args:
          given: images, of which only the luma is used.
          options: see `Options`.
        """
        if self._channels != 3:
            raise JcmError("the model makes grey images: use a model of colour images")
        x = self._images(given)
        free = np.asarray([0.0, 1.0, 1.0], np.float32)
        known = edits.known(Colours(), x, free)
        return self._edit("colorize", known, known.origin(), Options(**options))

    @fields_as_keywords(Options)
    def super_resolve(self, given: ImagesLike, **options: Unpack[Keywords]) -> Any:
        """Enlarges images; the means of the result's patches are the given pixels.

        Args:
          given: square images whose size divides the model's.
          options: see `Options`.
        """
        x = self._images(given, any_size=True)
        height, width = x.shape[1:3]
        factor, rest = divmod(self._size, height)
        if height != width or rest or factor < 2:
            raise JcmError(
                f"images of {width}x{height}: height and width must be the same, and"
                f" divide the model's {self._size} at least twice;"
                " jcm.open_pictures(paths, model, size=...) resizes pictures"
            )
        x = np.repeat(np.repeat(x, factor, axis=1), factor, axis=2)
        free = np.ones((self._size, self._size, 1), np.float32)
        free[::factor, ::factor] = 0  # where `Patches` has the mean
        known = edits.known(Patches(factor), x, free)
        return self._edit("super_resolve", known, known.origin(), Options(**options))

    @fields_as_keywords(Options)
    def stroke_to_image(self, given: ImagesLike, **options: Unpack[Keywords]) -> Any:
        """Turns rough strokes into images (SDEdit, Meng et al. 2022).

        The first of `sigmas` is the noise that hides the details to be replaced. By
        default they are (5.38, 2.24), the paper's levels for 256x256. Lower ones stay
        closer to the strokes. Small images need lower ones: about (1, 0.5) at 16x16.

        Args:
          given: images of strokes.
          options: see `Options`.
        """
        return self._edit(
            "stroke_to_image", None, self._images(given), Options(**options)
        )

    @fields_as_keywords(Options)
    def variations(
        self,
        given: ImagesLike,
        sigma: Number = edit_levels.VARIATION,
        **options: Unpack[Keywords],
    ) -> Any:
        """Makes images like the given ones: adds noise and removes it.

        Args:
          given: images.
          sigma: noise level; the higher, the less the results resemble the images. With
            `sigmas` it is not used.
          options: see `Options`.
        """
        chosen = Options(**options)
        if chosen.sigmas is None:
            steps = optional("steps", chosen.steps) or 1
            level = number("sigma", sigma)
            levels = edit_levels.descending(self._config, level, steps)
            chosen = dataclasses.replace(chosen, sigmas=levels, steps=None)
        return self._edit("variations", None, self._images(given), chosen)

    @explained
    def denoise(
        self,
        given: ImagesLike,
        sigma: Levels | None = None,
        *,
        labels: Labels = None,
        output: str = "float",
    ) -> Any:
        """Removes white noise from images in one evaluation, as f(x, sigma).

        Args:
          given: x0 + sigma z with x0 in [-1, 1] and z standard normal, not clipped.
          sigma: noise level, of all images or of each; None estimates that of each by
            `edits.noise_level`.
          labels: classes of a class-conditional model by number or name, one for all
            images or one for each; None for those of the config, or else every class in
            turn.
          output: "float" for an array in [-1, 1], "uint8" for an array of pixels, or
            "pil" for a list of Pillow images.
        """
        results.check_output(output)
        x = self._images(given, noisy=True)
        levels = edit_levels.of_noisy(self._config.noise, x, sigma)
        each = self._labels(labels, len(x))
        x0 = self._denoise(x, levels, None if each is None else np.asarray(each))
        return results.converted(np.asarray(x0), output, clip=True)

    @fields_as_keywords(Options)
    def interpolate(
        self,
        seeds: Sequence[Whole] | AnyArray,
        count: Whole = 8,
        **options: Unpack[Keywords],
    ) -> Any:
        """Interpolates between the images of several seeds (spherical, in the noise).

        By default one step is taken, and a class-conditional model uses its first
        class. There are (len(seeds) - 1) (count - 1) + 1 results for each variant.

        Args:
          seeds: at least two.
          count: number of images from each seed to the next, including both ends.
          options: see `Options`.
        """
        _check_seeds(seeds)
        count = whole("count", count)
        if len(seeds) < 2 or count < 2:
            raise JcmError("interpolation needs at least two seeds and two images")
        noises = [jax.random.normal(as_key(seed), self._shape) for seed in seeds]
        between = [
            edits.slerp(a, b, i / (count - 1))
            for a, b in zip(noises, noises[1:], strict=False)
            for i in range(count - 1)
        ]
        chosen = Options(**options)
        if self._sampler.denoiser.num_classes and chosen.labels is None:
            chosen = dataclasses.replace(chosen, labels=0)
        path = np.stack([*between, noises[-1]])
        return self._between("interpolate", path, chosen)

    @fields_as_keywords(Options)
    def between(
        self, noises: Float[AnyArray, "n h w c"], **options: Unpack[Keywords]
    ) -> Any:
        """Makes the images of given noise; by default in one step.

        Args:
          noises: standard normal, such as the results of `edits.slerp`.
          options: see `Options`.
        """
        return self._between("between", noises, Options(**options))

    @fields_as_keywords(Options)
    def run(
        self,
        known: Known,
        origin: Float[AnyArray, "n h w c"] | None = None,
        **options: Unpack[Keywords],
    ) -> Any:
        """Runs Algorithm 4 of Song et al. 2023 for any linear map, mask and noise.

        Args:
          known: the known part of the images, in any coordinates; see `edits.known`.
          origin: images that the first noise is added to; by default the known part,
            with zeros for the rest.
          options: see `Options`.
        """
        for array in (known.values, known.free, origin):
            if array is not None and np.shape(array)[1:] != self._shape:
                raise JcmError(
                    f"arrays of shape {np.shape(array)}: the model takes (n,"
                    f" {', '.join(map(str, self._shape))})"
                )
        origin = known.origin() if origin is None else origin
        return self._edit("run", known, origin, Options(**options))

    def sigmas(self, task: str, steps: Whole | None = None) -> tuple[float, ...]:
        """Returns the noise levels of a method, one for each step.

        Args:
          task: name of the method, such as "inpaint".
          steps: number of steps; None for those of the paper.

        Raises:
          JcmError: if there are too few or too many steps.
        """
        steps = optional("steps", steps, least=1)
        return edit_levels.of_task(self._config, self._sampler.denoiser, task, steps)

    def _inpaint(
        self,
        task: str,
        x: Float[np.ndarray, "n h w c"],
        free: Float[np.ndarray, "m h w 1"],
        options: Options,
    ) -> Any:
        """Replaces what is under the mask `free`."""
        known = edits.known(Pixels(), x, free)
        return self._edit(task, known, known.origin(), options)

    def _between(
        self, task: str, noises: Float[AnyArray, "n h w c"], options: Options
    ) -> Any:
        """Makes the images of given noise."""
        check_floats("noises", noises)
        if options.sigmas is None:
            levels = self.sigmas(task, options.steps)
            options = dataclasses.replace(options, sigmas=levels, steps=None)
        else:
            levels = build.levels(options.sigmas)
        options = dataclasses.replace(options, noisy=False)
        origin = np.float32(levels[0]) * np.asarray(noises, np.float32)
        return self._edit(task, None, origin, options)

    def _edit(
        self,
        task: str,
        known: Known | None,
        origin: Float[AnyArray, "n h w c"],
        options: Options,
    ) -> Any:
        """Runs the sampler from `origin`, putting back `known` after each step."""
        sigmas, variants = options.sigmas, options.variants
        if sigmas is None:
            sigmas = self.sigmas(task, options.steps)
        elif options.steps is not None:
            raise JcmError("steps and sigmas were both given: use one of them")
        schedule = build.schedule(self._config, self._sampler.denoiser, sigmas=sigmas)
        labels = self._labels(options.labels, len(origin))
        # Every variant of an image has the same label, origin and known part.
        labels, known, origin = jax.tree.map(
            lambda array: np.repeat(np.asarray(array), variants, axis=0),
            (labels if labels is None else np.asarray(labels), known, origin),
        )
        return results.run(
            self._sampler,
            self._params,
            options.seed,
            range(options.first, options.first + len(origin)),
            schedule,
            labels,
            title=task,
            output=options.output,
            progress=options.progress,
            callback=options.callback,
            trajectory=options.trajectory,
            origin=origin,
            known=known,
            noisy=options.noisy,
        )

    def _labels(self, labels: Labels, count: int) -> list[int] | None:
        """Returns the number of the class of each of `count` images, or None."""
        each = several(labels)
        if each is not None and len(each) != count:
            raise JcmError(f"{len(each)} labels for {count} images: pass one for each")
        denoiser = self._sampler.denoiser
        return image_labels(self._config, count, denoiser, self._class_names, labels)

    def _images(
        self, given: ImagesLike, any_size: bool = False, noisy: bool = False
    ) -> Float[np.ndarray, "n h w c"]:
        """Returns images as an array in [-1, 1]; see `inputs.as_images`."""
        size = None if any_size else self._size
        return inputs.as_images(given, self._channels, size, noisy=noisy)


def _check_seeds(seeds: Any) -> None:
    """Raises JcmError if what should be seeds is something else."""
    each = seeds if isinstance(seeds, Sequence) else [seeds]
    images = any(isinstance(one, str | Image.Image) or np.ndim(one) > 2 for one in each)
    if images or not np.ndim(seeds):
        given = "images" if images else f"{seeds!r}"
        raise JcmError(f"interpolate takes seeds, such as [0, 1], not {given}")
