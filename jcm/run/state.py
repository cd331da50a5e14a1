"""Everything a training run carries from one step to the next, as plain data."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jcm.networks import Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """A training run after `step` steps.

    Attributes:
      step: Int[Array, ""], number of optimiser steps done.
      params: Params of the student.
      target_params: Params of the consistency losses' EMA target; None where the
        method keeps none.
      ema_params: dict[str, Params], EMAs for sampling by their rate as a string.
      opt_state: of the optimiser.

    The types are those of a state of arrays; the same tree also holds shapes or
    placements, so they are not declared.
    """

    step: Any
    params: Any
    target_params: Any
    ema_params: Any
    opt_state: Any


def create(
    params: Params,
    optimizer: optax.GradientTransformation,
    *,
    keeps_target: bool,
    ema_rates: Sequence[float],
) -> State:
    """The state before the first step: target and EMAs are copies of `params`."""

    def copy() -> Params:
        return jax.tree.map(jnp.copy, params)  # donated buffers must not be shared

    return State(
        step=jnp.zeros((), jnp.int32),
        params=params,
        target_params=copy() if keeps_target else None,
        ema_params={str(rate): copy() for rate in ema_rates},
        opt_state=optimizer.init(params),
    )


def ema(average: Params, new: Params, rate: float | Float[Array, ""]) -> Params:
    """Returns rate * average + (1 - rate) * new, leaf by leaf, in float32."""
    return jax.tree.map(lambda a, n: rate * a + (1 - rate) * n, average, new)
