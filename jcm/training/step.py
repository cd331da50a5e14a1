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
from jcm.run.state import State, ema
from jcm.runtime import flops, memory

Metrics = dict[str, Array]
TrainStep = Callable[[State, Frozen, dict[str, Array]], tuple[State, Metrics]]


def example_keys(seed_key: Key[Array, ""], step: Int[Array, ""], count: int) -> Array:
    """One key per example of the global batch, counted by step and place."""
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
    """The step (state, frozen, batch) -> (state, metrics), to be jitted.

    Args:
      method: its loss and curriculum.
      optimizer: turns gradients into updates.
      seed_key: of the whole run; the step number is folded in.
      accumulate: micro-batches whose gradients are averaged; must divide the batch.
        The result is the same up to rounding.
      skip_nonfinite: where loss or gradient is not finite, parameters and optimiser
        stay as they are; the averages move on towards them.
      platform: of the devices that it is for; None for those that are here.

    Returns:
      The function. `frozen` has what stays as it is during the run, so not the
      target; `batch` has `image` (uint8, b h w c), `label` (int32, b) and `stop`
      (int32, one of each device), whose largest is a metric, the same everywhere.
    """
    classes = method.model.network.arch.num_classes
    # Inside of a loop XLA's CPU kernels run eight times slower. Unrolled, the
    # micro-batches overlap and save no memory there.
    unroll = (platform or jax.default_backend()) == "cpu"

    def mean_loss(params: Params, frozen: Frozen, batch: Batch, step: Array) -> Array:
        return jnp.mean(method.loss(params, frozen, batch, step))

    def gradients(params: Params, frozen: Frozen, batch: Batch, step: Array) -> Any:
        return jax.value_and_grad(mean_loss)(params, frozen, batch, step)

    def accumulated(params: Params, frozen: Frozen, batch: Batch, step: Array) -> Any:
        def micro_batches(x: Array) -> Array:
            # Strided, so that each device keeps an equal part of each micro-batch.
            return jnp.moveaxis(x.reshape(-1, accumulate, *x.shape[1:]), 1, 0)

        def add(total: Any, part: Batch) -> tuple[Any, None]:
            return jax.tree.map(
                jnp.add, total, gradients(params, frozen, part, step)
            ), None

        zero = jax.tree.map(jnp.zeros_like, (jnp.zeros(()), params))
        parts = jax.tree.map(micro_batches, batch)
        total, _ = jax.lax.scan(add, zero, parts, unroll=unroll)
        return jax.tree.map(lambda x: x / accumulate, total)

    def train_step(
        state: State,
        frozen: Frozen,
        batch: dict[str, Array],
    ) -> tuple[State, Metrics]:
        examples = Batch(
            images=images.to_float(batch["image"]),
            labels=batch["label"] if classes else None,
            keys=example_keys(seed_key, state.step, batch["image"].shape[0]),
        )
        frozen = frozen._replace(target=state.target_params)
        compute = gradients if accumulate == 1 else accumulated
        loss, grads = compute(state.params, frozen, examples, state.step)
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
        curriculum = method.curriculum(state.step)  # of the step being taken
        target_params = state.target_params
        if method.keeps_target:
            target_params = ema(target_params, params, curriculum["target_ema"])
        new_state = State(
            step=state.step + 1,
            params=params,
            target_params=target_params,
            ema_params={
                rate: ema(average, params, float(rate))
                for rate, average in state.ema_params.items()
            },
            opt_state=opt_state,
        )
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


def trace_step(
    train_step: TrainStep, state: Any, frozen: Any, batch: Any
) -> jax.stages.Traced:
    """The step for these shapes, to be compiled; it takes over the state's buffers.

    Args:
      train_step: from `make_train_step`.
      state: shapes and placement.
      frozen: shapes and placement.
      batch: shapes and placement.
    """
    placement = jax.tree.map(lambda leaf: leaf.sharding, state)
    jitted = jax.jit(train_step, donate_argnums=0, out_shardings=(placement, None))
    return jitted.trace(state, frozen, batch)


def compile_step(traced: jax.stages.Traced) -> jax.stages.Compiled:
    """Compiles a step from `trace_step`, and logs what it costs."""
    started = time.monotonic()
    compiled = traced.lower().compile()
    memory.release()
    logging.info(
        "compiled the training step in %.0f s: %.1f GFLOP a step, of all devices",
        time.monotonic() - started,
        flops.count(traced.jaxpr) / 1e9,
    )
    return compiled
