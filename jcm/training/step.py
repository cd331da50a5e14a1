"""The training step: one pure function, the same for every method."""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from absl import logging
from jaxtyping import Array, Int, Key

from jcm.data import images
from jcm.methods import Batch, Frozen, Losses, Method
from jcm.networks import Params
from jcm.run.state import State
from jcm.runtime import flops, memory
from jcm.runtime.errors import JcmError
from jcm.training.averages import Average, ema
from jcm.training.optim import LearningRate

# The memory of a step is allocated in parts that `memory.keep_freed` can keep.
_ON_CPU = {"xla_multiheap_size_constraint_per_heap": memory.KEPT_PART - 2**22}

Metrics = dict[str, Any]
TrainStep = Callable[[State, Frozen, dict[str, Array]], tuple[State, Metrics]]
# Names under which `TrainLog` and `Progress` write numbers, besides those of the step.
_SPEEDS = ("kimg", "steps_per_sec", "images_per_sec", "eta_secs")
_LOGGED = ("skipped", "data_wait_secs", *_SPEEDS)
# What is trained: the student, and the head of the method or None.
_Trained = tuple[Params, Params | None]
# By name, the sum of a value to log and the number of examples that have one.
_Totals = dict[str, tuple[Array, Array]]
# (trained, frozen, batch, step) -> (mean loss, totals), gradient
_Gradient = Callable[
    [_Trained, Frozen, Batch, Array], tuple[tuple[Array, _Totals], _Trained]
]


@dataclasses.dataclass(frozen=True)
class Rules:
    """How a step changes the state, apart from the method.

    Attributes:
      optimizer: turns gradients into directions.
      learning_rate: of the number of completed steps.
      averages: by the text that describes them.
      batch_size: images per step.
      seed_key: the key of the run; the step number is folded in.
      accumulate: the number of micro-batches whose gradients are averaged. It must
        divide the batch. The result is the same up to rounding.
      zero_nonfinite: whether NaN in a gradient becomes 0, and an infinite value 1e5.
      skip_nonfinite: whether a step whose loss or gradient is not finite leaves the
        parameters and the optimiser unchanged. The averages still move towards the
        parameters.
    """

    optimizer: optax.GradientTransformation
    learning_rate: LearningRate
    averages: Mapping[str, Average]
    batch_size: int
    seed_key: Key[Array, ""]
    accumulate: int = 1
    zero_nonfinite: bool = False
    skip_nonfinite: bool = False


def example_keys(
    seed_key: Key[Array, ""], step: Int[Array, ""], place: Int[Array, " b"]
) -> Key[Array, " b"]:
    """Returns one key per example, derived from (step, place in the global batch)."""
    step_key = jax.random.fold_in(seed_key, step)
    return jax.vmap(lambda i: jax.random.fold_in(step_key, i))(place)


def make_train_step(
    method: Method, rules: Rules, *, platform: str | None = None
) -> TrainStep:
    """Returns the step (state, frozen, batch) -> (state, metrics), to be jitted.

    Args:
      method: gives the loss and the curriculum.
      rules: how the step changes the state.
      platform: the platform of the devices to compile for; None for those of this
        process.

    Returns:
      The function. `frozen` holds what does not change during the run, so not the
      target; `batch` has `image` (uint8, (b, h, w, c)), `label` (int32, (b,)) and
      `notice` (int32, one per device), whose maximum is a metric, so that every process
      sees the same value. The metric `logs` has the sum and the count of every number
      that the loss logs.
    """
    classes = method.denoiser.network.arch.num_classes
    gradient = _gradient(method, rules.accumulate, platform)

    def train_step(
        state: State, frozen: Frozen, batch: dict[str, Array]
    ) -> tuple[State, Metrics]:
        examples = _examples(batch, rules.seed_key, state.step, classes > 0)
        frozen = frozen._replace(target=state.target_params)
        trained = state.params, state.head
        (loss, totals), grads = gradient(trained, frozen, examples, state.step)
        if rules.zero_nonfinite:
            grads = jax.tree.map(_without_nonfinite, grads)
        student_grads, head_grads = grads
        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(grad_norm) & jnp.isfinite(loss)
        applies = finite if rules.skip_nonfinite else None
        rate = rules.learning_rate(state.step)
        params, opt_state, updates = _optimise(
            rules.optimizer, rate, applies, student_grads, state.params, state.opt_state
        )
        head, head_opt_state = state.head, state.head_opt_state
        if head is not None and head_grads is not None:
            head, head_opt_state, _ = _optimise(
                rules.optimizer, rate, applies, head_grads, head, head_opt_state
            )
        # The curriculum is that of the step being taken, before the count increases.
        curriculum = method.curriculum(state.step)
        if "restart" in curriculum:
            opt_state, head_opt_state = jax.tree.map(
                functools.partial(jnp.where, curriculum["restart"]),
                _first_states(rules.optimizer, params, head),
                (opt_state, head_opt_state),
            )
        new_state = State(
            step=state.step + 1,
            params=params,
            target_params=_new_target(method, state, params, curriculum),
            ema_params=_new_averages(rules, state, params),
            opt_state=opt_state,
            head=head,
            head_opt_state=head_opt_state,
        )
        metrics = {
            "loss": loss,
            "grad_norm": grad_norm,
            "update_norm": optax.tree.norm(updates),
            "param_norm": optax.tree.norm(params),
            "learning_rate": rate,
            "notice": jnp.max(batch["notice"]),
            "logs": totals,
            **curriculum,
        }
        _check_names(totals, metrics)
        return new_state, metrics

    return train_step


def _check_names(totals: _Totals, metrics: Metrics) -> None:
    """Checks that the method logs nothing under a name that has another meaning.

    Raises:
      JcmError: if it does.
    """
    for name in sorted(totals.keys() & {*metrics, *_LOGGED}):
        raise JcmError(
            f"the method logs {name!r}, under which the log writes another number:"
            " choose another name in its Losses.logs"
        )


def _examples(
    batch: dict[str, Array],
    seed_key: Key[Array, ""],
    step: Int[Array, ""],
    conditional: bool,
) -> Batch:
    """Returns a batch as the loss reads it, with a key for each example."""
    place = jnp.arange(batch["image"].shape[0])
    return Batch(
        images=images.to_float(batch["image"]),
        labels=batch["label"] if conditional else None,
        keys=example_keys(seed_key, step, place),
        place=place,
    )


def _gradient(method: Method, accumulate: int, platform: str | None) -> _Gradient:
    """Returns the mean loss of a batch, what it logs, and its gradient."""

    def mean_loss(
        trained: _Trained, frozen: Frozen, batch: Batch, step: Array
    ) -> tuple[Array, _Totals]:
        losses: Losses = method.loss(*trained, frozen, batch, step)
        totals = {name: log.total() for name, log in losses.logs.items()}
        return jnp.mean(losses.each), totals

    gradient = jax.value_and_grad(mean_loss, has_aux=True)
    if accumulate == 1:
        return gradient
    # XLA's CPU kernels run eight times slower inside a loop. Unrolled, the
    # micro-batches overlap and save no memory, but a CPU has enough of it.
    on_cpu = (platform or jax.default_backend()) == "cpu"
    return _accumulated(gradient, accumulate, unroll=on_cpu)


def _optimise(
    optimizer: optax.GradientTransformation,
    rate: Array,
    applies: Array | None,
    grads: Params,
    params: Params,
    opt_state: Any,
) -> tuple[Params, Any, Params]:
    """Returns parameters, state of the optimiser and updates of a step.

    Args:
      optimizer: turns gradients into directions.
      rate: the learning rate.
      applies: whether the step changes anything; None for yes.
      grads: gradients of the parameters.
      params: parameters before the step.
      opt_state: state of the optimiser before the step.
    """
    direction, new_state = optimizer.update(grads, opt_state, params)
    updates = jax.tree.map(lambda d: -rate * d, direction)
    if applies is not None:
        updates, new_state = jax.tree.map(
            functools.partial(jnp.where, applies),
            (updates, new_state),
            (optax.tree.zeros_like(updates), opt_state),
        )
    return optax.apply_updates(params, updates), new_state, updates


def _first_states(
    optimizer: optax.GradientTransformation, params: Params, head: Params | None
) -> tuple[Any, Any]:
    """Returns new states of the optimisers of the parameters and of the head."""
    return optimizer.init(params), None if head is None else optimizer.init(head)


def _new_averages(rules: Rules, state: State, params: Params) -> dict[str, Params]:
    """Returns the averages of the parameters after a step."""
    return {
        name: rules.averages[name].update(
            average, params, state.step + 1, rules.batch_size
        )
        for name, average in state.ema_params.items()
    }


def _new_target(
    method: Method, state: State, params: Params, curriculum: Mapping[str, Array]
) -> Params | None:
    """Returns the target after a step; None if the method keeps none."""
    if not method.keeps_target:
        return state.target_params
    return ema(state.target_params, params, curriculum["target_ema"])


def _without_nonfinite(gradient: Array) -> Array:
    """Returns a gradient as ECT, EDM and CMT clean it, see `Rules.zero_nonfinite`."""
    return jnp.nan_to_num(gradient, nan=0.0, posinf=1e5, neginf=-1e5)


def _accumulated(gradient: _Gradient, count: int, *, unroll: bool) -> _Gradient:
    """Returns `gradient` over `count` micro-batches of a batch.

    Losses and gradients are averaged. What is logged is summed, since a micro-batch may
    have no example that counts.
    """

    def split(x: Array) -> Array:
        # Strided, so that each device keeps an equal part of each micro-batch.
        return jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 0)

    def accumulated(
        trained: _Trained, frozen: Frozen, batch: Batch, step: Array
    ) -> tuple[tuple[Array, _Totals], _Trained]:
        def add(total: Any, part: Batch) -> tuple[Any, None]:
            found = gradient(trained, frozen, part, step)
            return jax.tree.map(jnp.add, total, found), None

        parts = jax.tree.map(split, batch)
        first = jax.tree.map(lambda x: x[0], parts)
        shapes = jax.eval_shape(gradient, trained, frozen, first, step)
        zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        ((loss, totals), grads), _ = jax.lax.scan(add, zero, parts, unroll=unroll)
        loss, grads = jax.tree.map(lambda x: x / count, (loss, grads))
        return (loss, totals), grads

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


def compile_step(
    traced: jax.stages.Traced, *, platform: str | None = None
) -> jax.stages.Compiled:
    """Compiles a step from `trace_step` and logs its cost.

    Args:
      traced: the step.
      platform: the platform of the devices to compile for; None for those of this
        process.
    """
    logging.info("compiling the training step")
    started = time.monotonic()
    on_cpu = (platform or jax.default_backend()) == "cpu"
    compiled = traced.lower().compile(_ON_CPU if on_cpu else None)
    memory.release()
    logging.info(
        "compiled the training step in %.0f s: %.1f GFLOP per step on all devices",
        time.monotonic() - started,
        flops.count(traced.jaxpr) / 1e9,
    )
    return compiled
