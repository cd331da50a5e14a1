"""What the trainer asks of a method; it knows no method by name.

A method is a pure function of parameters, images and keys, and a few facts about
itself. Each lives in a file of its own in this folder.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
from jaxtyping import Array, Float, Int, Key

from jcm.diffusion.denoiser import Denoiser
from jcm.networks import Params


class Batch(NamedTuple):
    """What a loss is computed on.

    Attributes:
      images: clean images x0 in [-1, 1].
      labels: class of each image, or None for an unconditional network.
      keys: one key per example, so that no number depends on how many devices or
        micro-batches share the batch.
    """

    images: Float[Array, "b h w c"]
    labels: Int[Array, " b"] | None
    keys: Key[Array, " b"]

    def fold(self, stream: int) -> Key[Array, " b"]:
        """The keys for one use; `stream` tells the uses apart."""
        return jax.vmap(lambda key: jax.random.fold_in(key, stream))(self.keys)

    def normal(self, stream: int) -> Float[Array, "b h w c"]:
        """Standard normal noise of the images' shape."""
        shape = self.images.shape[1:]
        return jax.vmap(lambda key: jax.random.normal(key, shape))(self.fold(stream))


class Frozen(NamedTuple):
    """Parameters that a loss reads but never differentiates.

    Attributes:
      target: an average of the student's, where the method keeps one.
      teacher: of a diffusion model, where the method needs one.
      constants: `Method.constants`.
    """

    target: Params | None = None
    teacher: Params | None = None
    constants: Any = None


@runtime_checkable
class Method(Protocol):
    """A training method.

    Attributes:
      denoiser: the function that is trained and later sampled.
      needs_teacher: whether `Frozen.teacher` must be given; the student then begins
        with the teacher's weights.
      constants: arrays that its loss reads beside those of models, or None.
      keeps_target: whether the trainer keeps an EMA of the parameters for
        `Frozen.target`; otherwise that is None.
    """

    denoiser: Denoiser
    needs_teacher: bool
    keeps_target: bool
    constants: Any

    def loss(
        self, params: Params, frozen: Frozen, batch: Batch, step: Int[Array, ""]
    ) -> Float[Array, " b"]:
        """One number per example; the trainer minimises the mean."""

    def curriculum(self, step: Int[Array, ""]) -> dict[str, Array]:
        """Scalars that change with the step, to be logged.

        A method that keeps a target has its rate here as `target_ema`.
        """
