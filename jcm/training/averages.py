"""Exponential moving averages of parameters."""

import jax
from jaxtyping import Array, Float

from jcm.networks import Params


def ema(average: Params, new: Params, rate: float | Float[Array, ""]) -> Params:
    """Returns rate * average + (1 - rate) * new, leaf by leaf, in float32."""
    return jax.tree.map(lambda a, n: rate * a + (1 - rate) * n, average, new)
