"""A trained model in Python: `model.sample`, `model.denoise`, `model.edit`."""

import functools
import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key
from ml_collections import ConfigDict

from jcm.diffusion.denoiser import Denoiser
from jcm.diffusion.sampler import Sampler
from jcm.model import build, card
from jcm.model.editor import Editor
from jcm.model.labels import Labels, image_labels
from jcm.networks import Params
from jcm.runtime.arrays import AnyArray, as_key
from jcm.runtime.errors import JcmError


class Model:
    """A denoiser or consistency function with its weights.

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
        batch_size: int | None = None,
        step: int | None = None,
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
          JcmError: if `batch_size` is below 1.
        """
        if batch_size is not None and batch_size < 1:
            raise JcmError(f"batch_size={batch_size} must be at least 1")
        self.denoiser, self.params, self.config = denoiser, params, config
        self.class_names = tuple(class_names) if denoiser.num_classes else ()
        self.kind = denoiser.kind
        self.step, self.workdir, self.about = step, workdir, about or card.About()
        self._batch_size = batch_size or config.sample.batch_size
        self._denoise = jax.jit(denoiser)

    @functools.cached_property
    def sampler(self) -> Sampler:
        """The compiled sampler on this process's devices."""
        return Sampler(self.denoiser, batch_size=self._batch_size)

    @property
    def edit(self) -> Editor:
        """The edits of a consistency model, such as `model.edit.inpaint`.

        Raises:
          JcmError: for a diffusion model.
        """
        return Editor(
            self.sampler, self.params, self.config, self.class_names, self.denoise
        )

    def denoise(
        self,
        x: Float[AnyArray, "b h w c"],
        sigma: Float[AnyArray, " b"],
        labels: Int[AnyArray, " b"] | None = None,
    ) -> Float[Array, "b h w c"]:
        """Computes D(x, sigma) or f(x, sigma), the clean images behind noisy ones.

        It may be called inside of `jax.jit`, where values are not checked.

        Args:
          x: x0 + sigma z, with x0 in [-1, 1] and z standard normal.
          sigma: noise level of each image, above 0. The model was trained for the
            levels of `config.noise`.
          labels: class of each image; None for an unconditional model.

        Raises:
          JcmError: if shapes, noise levels or labels do not fit the model.
        """
        x, sigma = jnp.asarray(x, jnp.float32), jnp.asarray(sigma, jnp.float32)
        shape = self.denoiser.image_shape
        if x.shape[1:] != shape or sigma.shape != x.shape[:1]:
            raise JcmError(
                f"x of shape {x.shape} with sigma of shape {sigma.shape}: the model"
                f" takes (n, {', '.join(map(str, shape))}) and (n,)"
            )
        # The values of a tracer are unknown.
        if not isinstance(sigma, jax.core.Tracer) and not bool(jnp.all(sigma > 0)):
            raise JcmError("sigma must be above 0 for every image")
        labels = self.denoiser.as_labels(labels, len(x))
        return self._denoise(self.params, x, sigma, labels)

    def sample(
        self,
        key: Key[Array, ""] | int,
        count: int,
        *,
        sigmas: Sequence[float] | None = None,
        steps: int | None = None,
        solver: str | None = None,
        labels: Labels = None,
    ) -> Float[np.ndarray, "n h w c"]:
        """Samples images.

        Args:
          key: a JAX key or an integer seed; it determines image i for any `count`.
          count: number of images.
          sigmas: consistency models: descending noise levels, one for each step;
            (80.0,) is one step. None for those of the config.
          steps: diffusion models: number of points of the noise grid.
          solver: diffusion models: "heun" or "euler".
          labels: classes by number or name, which the images have in turn. None for
            those of the config, or else every class in turn.

        Returns:
          Images in [-1, 1]; `jcm.to_uint8` converts them to pixels.

        Raises:
          JcmError: if noise levels or labels do not fit the model.
        """
        schedule = build.schedule(
            self.config, self.denoiser, sigmas=sigmas, steps=steps, solver=solver
        )
        if count < 1:
            raise JcmError(f"count={count} must be at least 1")
        numbers = image_labels(
            self.config, count, self.denoiser, self.class_names, labels
        )
        made = self.sampler(self.params, as_key(key), range(count), schedule, numbers)
        return np.clip(made, -1.0, 1.0)
