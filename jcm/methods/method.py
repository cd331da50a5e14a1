"""The interface of a training method; the trainer knows no method by name.

A method consists of a loss, which is a pure function of parameters, images and keys,
and a few properties. Each method has its own file in this folder.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
from jaxtyping import Array, Float, Int, Key

from jcm.diffusion.denoiser import Denoiser
from jcm.networks import Params


class Batch(NamedTuple):
    """The examples that a loss is computed on.

    Attributes:
      images: clean images x0 in [-1, 1].
      labels: class of each image; None if the network is unconditional.
      keys: one key per example, so that no random number depends on the number of
        devices or micro-batches.
    """

    images: Float[Array, "b h w c"]
    labels: Int[Array, " b"] | None
    keys: Key[Array, " b"]

    def fold(self, stream: int) -> Key[Array, " b"]:
        """Returns one key per example for one use of randomness.

        Args:
          stream: a number for the use; different uses need different numbers.
        """
        return jax.vmap(lambda key: jax.random.fold_in(key, stream))(self.keys)

    def normal(self, stream: int) -> Float[Array, "b h w c"]:
        """Draws standard normal noise in the shape of the images; see `fold`."""
        shape = self.images.shape[1:]
        return jax.vmap(lambda key: jax.random.normal(key, shape))(self.fold(stream))


class Frozen(NamedTuple):
    """Parameters that a loss reads but does not differentiate.

    Attributes:
      target: EMA of the student's parameters, if the method keeps one.
      teacher: parameters of a diffusion model, if the method needs one.
      constants: `Method.constants`.
    """

    target: Params | None = None
    teacher: Params | None = None
    constants: Any = None


@runtime_checkable
class Method(Protocol):
    """A training method.

    Attributes:
      denoiser: D or f, the function that is trained and later sampled.
      needs_teacher: whether the loss needs `Frozen.teacher`. If so, the student starts
        from the teacher's weights.
      keeps_target: whether the trainer keeps an EMA of the parameters as
        `Frozen.target`, which is None otherwise.
      constants: arrays that the loss reads in addition to the parameters of the
        student, the target and the teacher; None if there are none.
    """

    denoiser: Denoiser
    needs_teacher: bool
    keeps_target: bool
    constants: Any

    def loss(
        self, params: Params, frozen: Frozen, batch: Batch, step: Int[Array, ""]
    ) -> Float[Array, " b"]:
        """Returns the loss of each example; the trainer minimises the mean.

        Args:
          params: parameters of the student.
          frozen: parameters that are not differentiated.
          batch: images, labels and keys.
          step: number of completed steps.
        """

    def curriculum(self, step: Int[Array, ""]) -> dict[str, Array]:
        """Returns the scalars that change with the step, to be logged.

        A method that keeps a target returns its EMA rate as `target_ema`.

        Args:
          step: number of completed steps.
        """
