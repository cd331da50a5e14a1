"""Floating-point operations of a program, counted where it is still mathematics.

Those of matrix products and convolutions, two for each multiplication, as papers and
makers of chips count. A compiled program does not tell them: on GPUs they are inside of
calls to libraries, and of a loop the compiler counts one turn.
"""

import math
from collections.abc import Iterator
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr


def count(program: ClosedJaxpr | Jaxpr) -> int:
    """Operations of all devices together.

    What is computed again in the backward pass counts again; a `while` loop counts one
    turn, and of the branches of a `cond` all count.

    Args:
      program: such as `jax.jit(f).trace(...).jaxpr`.
    """
    jaxpr = getattr(program, "jaxpr", program)
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        shapes = [getattr(value.aval, "shape", ()) for value in equation.invars]
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            terms = math.prod(shapes[0][axis] for axis in contracted)
            total += 2 * terms * math.prod(equation.outvars[0].aval.shape)
        elif name == "conv_general_dilated":
            _, into, *window = params["dimension_numbers"].rhs_spec
            terms = shapes[1][into] * math.prod(shapes[1][axis] for axis in window)
            outputs = math.prod(equation.outvars[0].aval.shape)
            # The rest are multiplications by zeros in between, which nobody does.
            total += 2 * terms * outputs // math.prod(params["lhs_dilation"])
        elif name.startswith("dot_product_attention_"):
            # Of cuDNN. That it computes the first product again in the backward pass
            # is its own affair.
            products = 4 if "_bwd" in name else 2
            total += products * 2 * math.prod(shapes[0]) * shapes[1][1]
        turns = params["length"] if name == "scan" else 1
        total += turns * sum(map(count, _inner(params.values())))
    return total


def _inner(values: Any) -> Iterator[ClosedJaxpr | Jaxpr]:
    """Programs inside of a program."""
    for value in values:
        if isinstance(value, ClosedJaxpr | Jaxpr):
            yield value
        elif isinstance(value, tuple | list):
            yield from _inner(value)
