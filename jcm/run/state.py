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
      ema_params: dict[str, Params], the averages to sample with, by the text that
        describes each in `config.train.averages`.
      opt_state: the state of the optimiser.
      head: Params of the method's head; None if it has none.
      head_opt_state: the state of the head's optimiser; None without a head.

    The fields have no array types, because the same tree also holds shapes or
    placements.
    """

    step: Any
    params: Any
    target_params: Any
    ema_params: Any
    opt_state: Any
    head: Any = None
    head_opt_state: Any = None


def create(
    params: Params,
    head: Params | None,
    optimizer: optax.GradientTransformation,
    *,
    keeps_target: bool,
    averages: Sequence[str],
) -> State:
    """Returns the state before the first step.

    Args:
      params: the first parameters; the target and the averages begin as copies.
      head: the first parameters of the method's head; None if it has none.
      optimizer: makes the state of the optimiser, and that of the head's.
      keeps_target: whether the method keeps an EMA target.
      averages: the averages to sample with, as in `config.train.averages`.
    """

    def copy() -> Params:
        # Each step donates its buffers, so no two parts may share one.
        return jax.tree.map(jnp.copy, params)

    return State(
        step=jnp.zeros((), jnp.int32),
        params=params,
        target_params=copy() if keeps_target else None,
        ema_params={spec: copy() for spec in averages},
        opt_state=optimizer.init(params),
        head=head,
        head_opt_state=None if head is None else optimizer.init(head),
    )
