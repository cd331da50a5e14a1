"""Operations that JAX differentiates by rules of ours, and that a CPU compiles once."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.experimental.xla_metadata import set_xla_metadata
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array

_Compute = Callable[..., Array]


def linear(
    name: str,
    compute: _Compute,
    transpose: Callable[..., Array],
    settings: tuple[str, ...],
) -> _Compute:
    """Returns a function of one array, linear in it, that maps rows to rows.

    Args:
      name: its name in a traced program.
      compute: (x, **settings) -> y.
      transpose: (gradient of y, shape of x, **settings) -> gradient of x.
      settings: names of its settings, which can be hashed.
    """
    primitive = _primitive(name, compute, compute, settings)

    def rule(gradient: Array, x: Any, **values: Any) -> list[Array]:
        return [transpose(gradient, x.aval.shape, **values)]

    ad.deflinear2(primitive, rule)

    def batched(arrays: Any, axes: Any, **values: Any) -> tuple[Array, int]:
        return _merged(lambda x: applied(x, **values), arrays[0], axes[0]), 0

    batching.primitive_batchers[primitive] = batched
    applied = _function(primitive, compute)
    return applied


def bilinear(
    name: str,
    on_cpu: _Compute,
    elsewhere: _Compute,
    transpose_one: Callable[[Array, Array], Array],
    transpose_other: Callable[[Array, Array], Array],
    by_row: bool = False,
) -> _Compute:
    """Returns a function of two arrays, linear in each.

    Args:
      name: its name in a traced program.
      on_cpu: (one, other) -> y on a CPU.
      elsewhere: the same on other platforms.
      transpose_one: (gradient of y, other) -> gradient of one.
      transpose_other: (gradient of y, one) -> gradient of other.
      by_row: whether the rows of y are functions of the same rows of `one`.
    """
    primitive = _primitive(name, on_cpu, elsewhere, ())
    ad.defbilinear(
        primitive,
        lambda gradient, one, other: transpose_one(gradient, other),
        lambda gradient, one, other: transpose_other(gradient, one),
    )

    def batched(arrays: Any, axes: Any) -> tuple[Array, int]:
        if by_row and axes[1] is None:
            return _merged(lambda x: applied(x, arrays[1]), arrays[0], axes[0]), 0
        return jax.vmap(elsewhere, axes)(*arrays), 0

    batching.primitive_batchers[primitive] = batched
    applied = _function(primitive, elsewhere)
    return applied


def _merged(function: Callable[[Array], Array], x: Array, axis: int) -> Array:
    """Applies a function of rows to the rows of all members of a batch at once."""
    x = jnp.moveaxis(x, axis, 0)
    y = function(x.reshape(-1, *x.shape[2:]))
    return y.reshape(*x.shape[:2], *y.shape[1:])


def _function(primitive: Primitive, plain: _Compute) -> _Compute:
    """Returns a function that binds a primitive wherever it is known how it is placed.

    Arrays with an explicit sharding, or that `jax.shard_map` knows to differ between
    devices, are left to JAX, whose own operations have the rules for that.
    """

    def apply(*arrays: Array, **values: Any) -> Array:
        use = plain if any(map(_is_placed, arrays)) else primitive.bind
        return use(*arrays, **values)

    return apply


def _is_placed(array: Array) -> bool:
    """Returns whether the type of an array says how it is spread over devices."""
    found = jax.typeof(array)
    explicit = any(axes is not None for axes in found.sharding.spec)
    return explicit or not found.manual_axis_type.empty


def _primitive(
    name: str, on_cpu: _Compute, elsewhere: _Compute, settings: tuple[str, ...]
) -> Primitive:
    """Returns a primitive that can be traced and compiled."""
    primitive = Primitive(name)

    def abstract(*arrays: Any, **values: Any) -> ShapedArray:
        given = [jax.ShapeDtypeStruct(each.shape, each.dtype) for each in arrays]
        found = jax.eval_shape(lambda *each: elsewhere(*each, **values), *given)
        return ShapedArray(found.shape, found.dtype)

    once = jax.jit(on_cpu, static_argnames=settings)

    def called(*arrays: Array, **values: Any) -> Array:
        # One function of the compiled program for all calls with equal shapes. Its
        # large arrays are freed before the next one starts.
        return set_xla_metadata(once(*arrays, **values), inlineable="false")

    compiled = jax.jit(primitive.bind, static_argnames=settings)

    def evaluate(*arrays: Array, **values: Any) -> Array:
        # Without jit, the primitive would evaluate itself again and again.
        with jax.disable_jit(False):
            return compiled(*arrays, **values)

    primitive.def_abstract_eval(abstract)
    primitive.def_impl(evaluate)
    mlir.register_lowering(primitive, mlir.lower_fun(elsewhere, multiple_results=False))
    mlir.register_lowering(
        primitive, mlir.lower_fun(called, multiple_results=False), platform="cpu"
    )
    return primitive
