"""Counts the floating-point operations of a program before it is compiled.

Matrix products and convolutions count, with two operations for each multiplication, as
in papers and in the specifications of chips. The cost analysis of a compiled program
cannot be used: on GPUs it misses the operations inside library calls, and it counts one
iteration of a loop.
"""

import math
from collections.abc import Iterator
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr


def count(program: ClosedJaxpr | Jaxpr, *, loops_once: bool = False) -> int:
    """Returns the number of operations of all devices together.

    What the backward pass computes again is counted again. A `while` loop counts as one
    iteration, and all branches of a `cond` count.

    Args:
      program: such as `jax.jit(f).trace(...).jaxpr`.
      loops_once: whether a `scan` counts as one iteration too, as in the cost analysis
        of a compiled program. One that is unrolled is no loop.
    """
    jaxpr = getattr(program, "jaxpr", program)
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        shapes = [_shape(value) for value in equation.invars]
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            terms = math.prod(shapes[0][axis] for axis in contracted)
            total += 2 * terms * math.prod(_shape(equation.outvars[0]))
        elif name == "conv_general_dilated":
            _, into, *window = params["dimension_numbers"].rhs_spec
            terms = shapes[1][into] * math.prod(shapes[1][axis] for axis in window)
            outputs = math.prod(_shape(equation.outvars[0]))
            # The other terms are multiplications by the zeros that dilation inserts.
            total += 2 * terms * outputs // math.prod(params["lhs_dilation"])
        elif name in ("convolve_3x3", "weight_gradient_3x3"):
            # Counted as direct convolutions: Winograd's algorithm multiplies less.
            images, height, width, channels = shapes[0]
            pixels = images * height * width
            terms = 9 * channels if name == "convolve_3x3" else pixels
            total += 2 * terms * math.prod(_shape(equation.outvars[0]))
        elif name.startswith("dot_product_attention_"):
            # cuDNN's attention. Its backward pass also computes the first product
            # again, which is not counted.
            products = 4 if "_bwd" in name else 2
            total += products * 2 * math.prod(shapes[0]) * shapes[1][1]
        iterations = 1
        if name == "scan":
            unrolled = min(params["unroll"], params["length"])
            iterations = unrolled if loops_once else params["length"]
        inner = _inner(params.values())
        total += iterations * sum(count(each, loops_once=loops_once) for each in inner)
    return total


def _shape(value: Any) -> tuple[int, ...]:
    """Returns the shape of a value of a program; that of a token is ()."""
    return getattr(value.aval, "shape", ())


def _inner(values: Any) -> Iterator[ClosedJaxpr | Jaxpr]:
    """Yields the programs among the parameters of an operation."""
    for value in values:
        if isinstance(value, ClosedJaxpr | Jaxpr):
            yield value
        elif isinstance(value, tuple | list):
            yield from _inner(value)
