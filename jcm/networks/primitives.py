"""Operations that JAX differentiates by rules of ours, and that a CPU compiles once."""

from collections.abc import Callable
from typing import Any

import jax
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
    """Returns a function of one array, linear in it.

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
    return primitive.bind


def bilinear(
    name: str,
    on_cpu: _Compute,
    elsewhere: _Compute,
    transpose_one: Callable[[Array, Array], Array],
    transpose_other: Callable[[Array, Array], Array],
) -> _Compute:
    """Returns a function of two arrays, linear in each.

    Args:
      name: its name in a traced program.
      on_cpu: (one, other) -> y on a CPU.
      elsewhere: the same on other platforms.
      transpose_one: (gradient of y, other) -> gradient of one.
      transpose_other: (gradient of y, one) -> gradient of other.
    """
    primitive = _primitive(name, on_cpu, elsewhere, ())
    ad.defbilinear(
        primitive,
        lambda gradient, one, other: transpose_one(gradient, other),
        lambda gradient, one, other: transpose_other(gradient, one),
    )
    return primitive.bind


def _primitive(
    name: str, on_cpu: _Compute, elsewhere: _Compute, settings: tuple[str, ...]
) -> Primitive:
    """Returns a primitive that can be traced, compiled and batched."""
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

    def batched(arrays: Any, axes: Any, **values: Any) -> tuple[Array, int]:
        each = jax.vmap(lambda *given: elsewhere(*given, **values), axes)
        return each(*arrays), 0

    primitive.def_abstract_eval(abstract)
    primitive.def_impl(jax.jit(primitive.bind, static_argnames=settings))
    batching.primitive_batchers[primitive] = batched
    mlir.register_lowering(primitive, mlir.lower_fun(elsewhere, multiple_results=False))
    mlir.register_lowering(
        primitive, mlir.lower_fun(called, multiple_results=False), platform="cpu"
    )
    return primitive
