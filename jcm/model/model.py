"""A trained model in Python: `model.sample`, `model.denoise`, `model.edit`."""

import functools
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, Real
from ml_collections import ConfigDict

from jcm import networks
from jcm.data.images import to_float
from jcm.diffusion.denoiser import Denoiser
from jcm.diffusion.sampler import Callback, Sampler
from jcm.model import build, card, results
from jcm.model.build import Levels
from jcm.model.editor import Editor
from jcm.model.labels import Labels, image_labels, labels_of_images
from jcm.networks import Params
from jcm.run import recorded_scores
from jcm.run.recorded_scores import Score
from jcm.runtime.arguments import explained, no_attribute, numbers, optional, whole
from jcm.runtime.arrays import AnyArray, Whole, check_finite, check_floats
from jcm.runtime.errors import JcmError, printable

# The summary of a model shows at most this many characters of a name.
_LONGEST_NAME = 60


class Model:
    """A denoiser or consistency function with its weights.

    `model.sample(16)` samples images. `print(model.edit)` lists the edits of given
    images, such as `model.edit.inpaint(images, mask)`. `jcm.save_png` writes images to
    a file, `jcm.save` the model to a folder, and `jcm.evaluate` scores it.

    Attributes:
      denoiser: D or f, as a pure function of its parameters.
      params: the weights.
      config: of the run that trained them.
      class_names: names of the classes 0, 1, ...; empty for an unconditional model.
      kind: "diffusion", "consistency" or "flow_map".
      step: number of training steps that made the weights; None if unknown.
      workdir: of the run that trained them; None if they come from elsewhere.
      about: what else a model card says of them.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        params: Params,
        config: ConfigDict,
        class_names: Sequence[str] = (),
        *,
        batch_size: Whole | None = None,
        step: Whole | None = None,
        workdir: str | os.PathLike | None = None,
        about: card.About | None = None,
    ):
        """Creates a model of its parts; `jcm.load` creates one from files.

        Args:
          denoiser: D or f.
          params: the weights.
          config: of the run that trained them.
          class_names: names of the classes; ignored for an unconditional model.
          batch_size: largest number of images at a time on this process's devices;
            None for `config.sample.batch_size`.
          step: number of training steps that made the weights, if known.
          workdir: of the run that trained them, if there is one.
          about: what else a model card says of them.

        Raises:
          JcmError: if `batch_size` is below 1, or if the weights are not finite.
        """
        batch_size = optional("batch_size", batch_size, least=1)
        self.denoiser, self.config = denoiser, config
        self.params = params
        self.class_names = tuple(class_names) if denoiser.num_classes else ()
        self.kind = denoiser.kind
        self.step = optional("step", step)
        self.workdir, self.about = workdir, about or card.About()
        self._batch_size = batch_size or config.sample.batch_size
        self._denoise = jax.jit(denoiser)
        # Weights, and their copies on every device.
        self._copied: list[Any] = []
        self._copies: Params = {}

    @property
    def params(self) -> Params:
        """The weights; other ones may be set.

        Raises:
          JcmError: if a weight that is set is not finite.
        """
        return self._params

    @params.setter
    def params(self, params: Params) -> None:
        check_finite(params, "use an earlier checkpoint, or copy the file again")
        self._params = params
        vars(self).pop("_digest", None)

    @functools.cached_property
    def sampler(self) -> Sampler:
        """The compiled sampler on this process's devices."""
        return Sampler(self.denoiser, batch_size=self._batch_size)

    @property
    def _placed(self) -> Params:
        """The weights on every device of this process."""
        leaves = jax.tree.leaves(self.params)
        # A weight may also have been replaced in the tree itself.
        if [*map(id, leaves)] != [*map(id, self._copied)]:
            self._copied, self._copies = leaves, self.sampler.place(self.params)
        return self._copies

    @property
    def edit(self) -> Editor:
        """The edits of a consistency model, such as `model.edit.inpaint`.

        Raises:
          JcmError: for a diffusion model.
        """
        return Editor(
            self.sampler, self._placed, self.config, self.class_names, self.denoise
        )

    if not TYPE_CHECKING:  # it would hide wrong names

        def __getattr__(self, name: str) -> Any:
            known = [*dir(type(self)), *vars(self)]
            raise no_attribute("a Model", "model", name, known)

    def __repr__(self) -> str:
        facts = [self.kind]
        if self.about.trained:
            facts.append(printable(self.config.data.name, _LONGEST_NAME))
        facts.append("x".join(map(str, self.denoiser.image_shape)))
        if self.denoiser.num_classes:
            facts.append(f"{self.denoiser.num_classes} classes")
        facts.append(f"{networks.count(self.params):,} parameters")
        if self.step is not None:
            facts.append(f"step {self.step:,}")
        line = f"<jcm.Model: {', '.join(facts)}>"
        try:
            scores = card.in_words(self.scores)
        except JcmError as error:  # the file of scores may be damaged
            scores = str(error)
        return f"{line}\n{scores}" if scores else line

    @property
    def scores(self) -> tuple[Score, ...]:
        """The recorded scores of exactly these weights, as in scores.jsonl.

        Raises:
          JcmError: if the file cannot be read.
        """
        if self.workdir is None:
            return self.about.scores
        records = recorded_scores.read(self.workdir)
        return tuple(each for each in records if each["weights"] == self._digest)

    @functools.cached_property
    def _digest(self) -> str:
        """The fingerprint of the weights."""
        return networks.fingerprint(self.params)

    @explained
    def denoise(
        self,
        x: Real[AnyArray, "b h w c"],
        sigma: Levels,
        labels: Labels = None,
    ) -> Float[Array, "b h w c"]:
        """Computes D(x, sigma) or f(x, sigma), the clean images behind noisy ones.

        It may be called inside of `jax.jit`, where values are not checked.
        `model.edit.denoise` also takes Pillow images, and estimates the noise level.

        Args:
          x: x0 + sigma z, with x0 in [-1, 1] and z standard normal. Pixels in uint8 are
            converted by `jcm.to_float`.
          sigma: noise level above 0, one for all images or one for each. The model was
            trained for the levels of `config.noise`.
          labels: classes by number or name, one for all images or one for each. None
            for an unconditional model.

        Returns:
          Images in about [-1, 1].

        Raises:
          JcmError: if shapes, noise levels or labels do not fit the model, or if it
            makes images that are not finite.
        """
        if isinstance(x, str | os.PathLike):
            raise JcmError(f"{x!r} is a path: read it with jcm.open_pictures")
        traced = any(isinstance(a, jax.core.Tracer) for a in (x, sigma, labels))
        # NumPy compiles nothing for another number of images.
        xp: Any = jnp if traced else np
        images, levels = xp.asarray(x), numbers("sigma", sigma)
        images = to_float(images) if images.dtype == np.uint8 else images
        check_floats("x", images)
        images = images.astype(np.float32)
        if not isinstance(levels, jax.core.Tracer):
            levels = np.asarray(levels)
            if not np.all(levels > 0):
                raise JcmError("sigma must be above 0 for every image")
        levels, shape = xp.asarray(levels, np.float32), self.denoiser.image_shape
        if images.shape == shape:
            raise JcmError(f"x of shape {shape} is one image: pass x[None]")
        if images.shape[1:] != shape or levels.shape not in ((), images.shape[:1]):
            raise JcmError(
                f"x of shape {images.shape} with sigma of shape {levels.shape}: the"
                f" model takes (n, {', '.join(map(str, shape))}), and one sigma or (n,)"
            )
        count = len(images)
        each = labels_of_images(labels, count, self.denoiser, self.class_names)
        if traced:
            levels = jnp.broadcast_to(levels, count)
            return self._denoise(self.params, images, levels, each)
        _check_range(images, levels)
        levels = np.broadcast_to(levels, count)
        made = self.sampler.denoise(self._placed, images, levels, each)
        results.check_finite(made)
        return jax.device_put(made)  # jnp.asarray would compile for its shape

    @explained
    def sample(
        self,
        count: Whole,
        *,
        seed: Whole | Key[Array, ""] = 0,
        steps: Whole | None = None,
        sigmas: Levels | None = None,
        labels: Labels = None,
        solver: str | None = None,
        output: str = "float",
        progress: bool = True,
        callback: Callback | None = None,
        trajectory: bool = False,
    ) -> Any:
        """Samples images.

        Args:
          count: number of images.
          seed: an integer or a JAX key; it determines image i for any `count`.
          steps: number of steps. A consistency model has noise levels for one and two
            steps, and takes those of a grid for more; a diffusion model takes as many
            points of its noise grid. None for the setting of the config.
          sigmas: consistency models: descending noise levels, one for each step, in
            place of `steps`; a single number is one step.
          labels: classes by number or name, which the images have in turn. None for
            those of the config, or else every class in turn.
          solver: diffusion models: "heun" or "euler".
          output: "float" for an array in [-1, 1], "uint8" for an array of pixels, or
            "pil" for a list of Pillow images.
          progress: whether a progress bar appears if it takes more than two seconds.
          callback: called as `callback(step, sigma, images)` after each step of each
            batch. `step` counts from 1, and `sigma` is the noise level at which the
            step begins. `images` are floats: the clean images of a consistency model,
            or the points on the trajectory of a diffusion model after the step.
          trajectory: whether to return the images after each step, too.

        Returns:
          Images (count, height, width, channels), or a list of `count` Pillow images.
          With `trajectory` a pair (images, trajectory): entry i of the trajectory has
          the images after step i + 1, in the same form.

        Raises:
          JcmError: if an argument does not fit the model.
        """
        schedule = build.schedule(
            self.config, self.denoiser, sigmas=sigmas, steps=steps, solver=solver
        )
        count = whole("count", count, least=1)
        each = image_labels(self.config, count, self.denoiser, self.class_names, labels)
        return results.run(
            self.sampler,
            self._placed,
            seed,
            range(count),
            schedule,
            each,
            title="sample",
            output=output,
            progress=progress,
            callback=callback,
            trajectory=trajectory,
            clip=True,
        )


def _check_range(
    x: Float[np.ndarray, "b h w c"], sigma: Float[np.ndarray, "..."]
) -> None:
    """Raises JcmError if x cannot be images in [-1, 1] with noise of level sigma."""
    largest = float(np.abs(x).max())
    if not np.isfinite(largest):
        raise JcmError("x has values that are not finite: remove them")
    # No image has such noise, and noise is also negative.
    if largest > 10 * (1 + float(sigma.max())) or (largest > 2 and x.min() >= 0):
        raise JcmError(
            f"x ranges from {x.min():.3g} to {x.max():.3g}, more than images in [-1, 1]"
            " with this noise: convert pixels with jcm.to_float, and add the noise"
        )
