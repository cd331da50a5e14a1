"""The state that a training run carries from step to step, as plain data."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jcm.networks import Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """A training run after `step` steps.

    Attributes:
      step: Int[Array, ""], the number of optimiser steps that are done.
      params: Params of the student.
      target_params: Params of the EMA target of a consistency loss; None if the
        method keeps no target.
      ema_params: dict[str, Params], the averages to sample with, by their rate as a
        string.
      opt_state: the state of the optimiser.

    The fields have no array types, because the same tree also holds shapes or
    placements.
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
    """Returns the state before the first step.

    Args:
      params: the first parameters; the target and the averages begin as copies.
      optimizer: makes the state of the optimiser.
      keeps_target: whether the method keeps an EMA target.
      ema_rates: the rates of the averages to sample with.
    """

    def copy() -> Params:
        # Each step donates its buffers, so no two parts may share one.
        return jax.tree.map(jnp.copy, params)

    return State(
        step=jnp.zeros((), jnp.int32),
        params=params,
        target_params=copy() if keeps_target else None,
        ema_params={str(rate): copy() for rate in ema_rates},
        opt_state=optimizer.init(params),
    )
