"""The training step: one pure function, the same for every method."""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from absl import logging
from jaxtyping import Array, Int, Key

from jcm.data import images
from jcm.methods import Batch, Frozen, Method
from jcm.networks import Params
from jcm.run.state import State
from jcm.runtime import flops, memory
from jcm.training.averages import ema

Metrics = dict[str, Array]
TrainStep = Callable[[State, Frozen, dict[str, Array]], tuple[State, Metrics]]
# (params, frozen, batch, step) -> (mean loss, its gradient)
_Gradient = Callable[[Params, Frozen, Batch, Array], tuple[Array, Params]]


def example_keys(seed_key: Key[Array, ""], step: Int[Array, ""], count: int) -> Array:
    """Returns one key per example, derived from (step, place in the global batch)."""
    step_key = jax.random.fold_in(seed_key, step)
    return jax.vmap(lambda i: jax.random.fold_in(step_key, i))(jnp.arange(count))


def make_train_step(
    method: Method,
    optimizer: optax.GradientTransformation,
    *,
    seed_key: Key[Array, ""],
    accumulate: int = 1,
    skip_nonfinite: bool = False,
    platform: str | None = None,
) -> TrainStep:
    """Returns the step (state, frozen, batch) -> (state, metrics), to be jitted.

    Args:
      method: gives the loss and the curriculum.
      optimizer: turns gradients into updates.
      seed_key: the key of the run; the step number is folded in.
      accumulate: the number of micro-batches whose gradients are averaged. It must
        divide the batch. The result is the same up to rounding.
      skip_nonfinite: if the loss or the gradient is not finite, leave the parameters
        and the optimiser unchanged. The averages still move towards the parameters.
      platform: the platform of the devices to compile for; None for those of this
        process.

    Returns:
      The function. `frozen` holds what does not change during the run, so not the
      target; `batch` has `image` (uint8, (b, h, w, c)), `label` (int32, (b,)) and
      `stop` (int32, one per device), whose maximum is a metric, so that every process
      sees the same value.
    """
    classes = method.denoiser.network.arch.num_classes

    def mean_loss(params: Params, frozen: Frozen, batch: Batch, step: Array) -> Array:
        return jnp.mean(method.loss(params, frozen, batch, step))

    gradient = jax.value_and_grad(mean_loss)
    if accumulate > 1:
        # XLA's CPU kernels run eight times slower inside a loop. Unrolled, the
        # micro-batches overlap and save no memory, but a CPU has enough of it.
        on_cpu = (platform or jax.default_backend()) == "cpu"
        gradient = _accumulated(gradient, accumulate, unroll=on_cpu)

    def train_step(
        state: State, frozen: Frozen, batch: dict[str, Array]
    ) -> tuple[State, Metrics]:
        examples = Batch(
            images=images.to_float(batch["image"]),
            labels=batch["label"] if classes else None,
            keys=example_keys(seed_key, state.step, batch["image"].shape[0]),
        )
        frozen = frozen._replace(target=state.target_params)
        loss, grads = gradient(state.params, frozen, examples, state.step)
        grad_norm = optax.tree.norm(grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        if skip_nonfinite:
            finite = jnp.isfinite(grad_norm) & jnp.isfinite(loss)
            updates, opt_state = jax.tree.map(
                functools.partial(jnp.where, finite),
                (updates, opt_state),
                (optax.tree.zeros_like(updates), state.opt_state),
            )
        params = optax.apply_updates(state.params, updates)
        # The curriculum is that of the step being taken, before the count increases.
        curriculum = method.curriculum(state.step)
        target_ema = curriculum["target_ema"] if method.keeps_target else None
        new_state = _advance(state, params, opt_state, target_ema)
        metrics = {
            "loss": loss,
            "grad_norm": grad_norm,
            "update_norm": optax.tree.norm(updates),
            "param_norm": optax.tree.norm(params),
            "stop": jnp.max(batch["stop"]),
            **curriculum,
        }
        return new_state, metrics

    return train_step


def _advance(
    state: State, params: Params, opt_state: Any, target_ema: Array | None
) -> State:
    """Returns the state after a step: the target and the averages follow `params`."""
    target_params = state.target_params
    if target_ema is not None:
        target_params = ema(target_params, params, target_ema)
    return State(
        step=state.step + 1,
        params=params,
        target_params=target_params,
        ema_params={
            rate: ema(average, params, float(rate))
            for rate, average in state.ema_params.items()
        },
        opt_state=opt_state,
    )


def _accumulated(gradient: _Gradient, count: int, *, unroll: bool) -> _Gradient:
    """Returns `gradient` averaged over `count` micro-batches of a batch."""

    def split(x: Array) -> Array:
        # Strided, so that each device keeps an equal part of each micro-batch.
        return jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 0)

    def accumulated(
        params: Params, frozen: Frozen, batch: Batch, step: Array
    ) -> tuple[Array, Params]:
        def add(total: Any, part: Batch) -> tuple[Any, None]:
            found = gradient(params, frozen, part, step)
            return jax.tree.map(jnp.add, total, found), None

        zero = jax.tree.map(jnp.zeros_like, (jnp.zeros(()), params))
        parts = jax.tree.map(split, batch)
        total, _ = jax.lax.scan(add, zero, parts, unroll=unroll)
        return jax.tree.map(lambda x: x / count, total)

    return accumulated


def trace_step(
    train_step: TrainStep, state: Any, frozen: Any, batch: Any
) -> jax.stages.Traced:
    """Traces the step for some shapes, to be compiled.

    The compiled step donates the buffers of the state.

    Args:
      train_step: from `make_train_step`.
      state: shapes and placement of the state.
      frozen: shapes and placement of what does not change.
      batch: shapes and placement of a batch.
    """
    placement = jax.tree.map(lambda leaf: leaf.sharding, state)
    jitted = jax.jit(train_step, donate_argnums=0, out_shardings=(placement, None))
    return jitted.trace(state, frozen, batch)


def compile_step(traced: jax.stages.Traced) -> jax.stages.Compiled:
    """Compiles a step from `trace_step` and logs its cost."""
    started = time.monotonic()
    compiled = traced.lower().compile()
    memory.release()
    logging.info(
        "compiled the training step in %.0f s: %.1f GFLOP per step on all devices",
        time.monotonic() - started,
        flops.count(traced.jaxpr) / 1e9,
    )
    return compiled
