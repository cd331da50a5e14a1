"""The interface of a training method; the trainer knows no method by name.

A method consists of a loss, which is a pure function of parameters, images and keys,
and a few properties. Each method has its own file in this folder, which ends with a
`Recipe`: how a config makes the method.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jcm.diffusion.denoiser import Denoiser
from jcm.networks import Network, Params
from jcm.runtime.arrays import check_floats
from jcm.runtime.fields import Section


class Batch(NamedTuple):
    """The examples that a loss is computed on.

    Attributes:
      images: clean images x0 in [-1, 1].
      labels: class of each image; None if the network is unconditional.
      keys: one key per example, so that no random number depends on the number of
        devices or micro-batches.
      place: position of each example in the global batch, from 0. A method that treats
        a fixed share of the batch differently uses it, for example
        `place % 4 == 0`, so that the share does not depend on the number of devices
        or micro-batches.
    """

    images: Float[Array, "b h w c"]
    labels: Int[Array, " b"] | None
    keys: Key[Array, " b"]
    place: Int[Array, " b"]

    def fold(self, stream: int) -> Key[Array, " b"]:
        """Returns one key per example for one use of randomness.

        Args:
          stream: a number for the use; different uses need different numbers.
        """
        return jax.vmap(lambda key: jax.random.fold_in(key, stream))(self.keys)

    def normal(self, stream: int) -> Float[Array, "b h w c"]:
        """Draws standard normal noise in the shape of the images; see `fold`.

        Raises:
          JcmError: if the images are not floats.
        """
        check_floats("the images of a batch", self.images)
        shape = self.images.shape[1:]
        return jax.vmap(lambda key: jax.random.normal(key, shape))(self.fold(stream))


class Log(NamedTuple):
    """A number to log: the mean of a value over the examples that have one.

    Attributes:
      values: the value of each example; ignored where `where` is false.
      where: which examples count; None for all.
    """

    values: Float[Array, " b"]
    where: Bool[Array, " b"] | None = None

    def total(self) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Returns the sum of the values and the number of examples that count.

        Sums and counts of several batches can be added, and give the mean also if one
        batch has no example that counts.
        """
        where = jnp.ones_like(self.values, bool) if self.where is None else self.where
        # Selecting before the sum keeps a NaN of an example that does not count out.
        values = jnp.where(where, self.values.astype(jnp.float32), 0)
        return jnp.sum(values), jnp.sum(where, dtype=jnp.float32)


class Losses(NamedTuple):
    """What a loss returns.

    Attributes:
      each: the loss of each example; the trainer minimises the mean.
      logs: further numbers to log, by name. Names that the log of training uses
        itself are refused, such as `loss`.
    """

    each: Float[Array, " b"]
    logs: Mapping[str, Log] = {}


class Frozen(NamedTuple):
    """Parameters that a loss reads but does not differentiate.

    Attributes:
      target: EMA of the student's parameters, if the method keeps one.
      teachers: parameters of each teacher, by the names in `Recipe.teachers`.
      constants: `Method.constants`.
    """

    target: Params | None = None
    teachers: Mapping[str, Params] = {}
    constants: Any = None


@runtime_checkable
class Method(Protocol):
    """A training method."""

    @property
    def denoiser(self) -> Denoiser:
        """D or f, the function that is trained and later sampled."""

    @property
    def keeps_target(self) -> bool:
        """Whether the trainer keeps an EMA of the parameters as `Frozen.target`."""

    @property
    def constants(self) -> Any:
        """Arrays that the loss reads in addition to all parameters; None without any.

        They are neither of the student, nor of the target, nor of a teacher.
        """

    def init_head(self, key: Key[Array, ""]) -> Params | None:
        """Returns the first parameters of a head, or None if the method has no head.

        A head is a small network of the loss, such as a learned weighting. It is
        trained with the student by an optimiser of the same settings. It is neither
        averaged nor sampled nor exported.

        Args:
          key: the same key gives the same parameters.
        """

    def loss(
        self,
        params: Params,
        head: Params | None,
        frozen: Frozen,
        batch: Batch,
        step: Int[Array, ""],
    ) -> Losses:
        """Returns the loss of each example.

        Args:
          params: parameters of the student.
          head: parameters of the head; None if the method has none.
          frozen: parameters that are not differentiated.
          batch: images, labels, keys and places.
          step: number of completed steps.
        """

    def curriculum(self, step: Int[Array, ""]) -> dict[str, Array]:
        """Returns the scalars that change with the step, to be logged.

        Two names mean something to the trainer. `target_ema` is the EMA rate of the
        target, which a method that keeps one must return. `restart`, a bool, makes the
        state of the optimiser new after the step.

        Args:
          step: number of completed steps.
        """


class Plain:
    """The defaults of a method: no head, no target, no constants, no curriculum."""

    keeps_target: Any = False
    constants: Any = None

    def init_head(self, key: Key[Array, ""]) -> Params | None:
        """Returns None, since there is no head."""
        del key
        return None

    def curriculum(self, step: Int[Array, ""]) -> dict[str, Array]:
        """Returns no scalars, since nothing changes with the step."""
        del step
        return {}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a config makes a method.

    Attributes:
      create: returns the method of (config, network F, denoisers of the teachers by
        name).
      denoiser: returns the denoiser that the method trains, of (config, network F).
      settings: the fields of `config.loss`.
      teachers: the kind of each teacher, "diffusion", "consistency" or "flow_map", by
        its name. `config.teachers` has a field for each.
      begins_with: the teacher whose weights the student begins with, which must have
        the student's network; None for random weights.
      conditions: the fields of `config.model` whose conditions the method passes to the
        network: "times", "augment_dim", "guidance".
      uses_num_steps: whether the training of a config depends on the length of the
        run, which may then not change when the run resumes.
    """

    create: Callable[[Any, Network, Mapping[str, Denoiser]], Method]
    denoiser: Callable[[Any, Network], Denoiser]
    settings: Section
    teachers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    begins_with: str | None = None
    conditions: Sequence[str] = ()
    uses_num_steps: Callable[[Any], bool] = lambda config: True
