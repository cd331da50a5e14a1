"""Moving averages of parameters, each described by a short text.

"0.9999"             constant rate
"halflife:0.5"       half-life in millions of images (Karras et al. 2022)
"halflife:0.5/0.05"  the same, but at most 0.05 times the images seen so far
"power:0.05"         power function of relative width 0.05 (Karras et al. 2024)

An average of the first two forms begins as a copy of the first weights. Their share of
it is still 0.9999^n after n steps. An average with a ramp or a power function forgets
them after a few steps, so that it is suitable for a run of any length. The configs of
the paper have the form of the paper, and those for folders of pictures have a ramp.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jcm.networks import Params
from jcm.runtime.errors import JcmError

_FORMS = "use a rate such as 0.9999, halflife:0.5/0.05 or power:0.05"


@dataclasses.dataclass(frozen=True)
class Average:
    """How fast an average follows the parameters.

    Attributes:
      rate: a constant rate; None for another form.
      half_life: images in which a weight halves; None for another form.
      ramp: largest half-life as a share of the images seen; None for no ramp.
      gamma: exponent of a power function; None for another form.
    """

    rate: float | None = None
    half_life: float | None = None
    ramp: float | None = None
    gamma: float | None = None

    @property
    def is_power(self) -> bool:
        """Whether the average is a power function."""
        return self.gamma is not None

    def update(
        self, average: Params, new: Params, step: Int[Array, ""], batch_size: int
    ) -> Params:
        """Returns the average after a step, in float32.

        Args:
          average: before the step.
          new: the parameters after the step.
          step: number of completed steps, with this one.
          batch_size: images per step.
        """
        if self.rate is not None:
            return ema(average, new, self.rate)
        if self.half_life is not None and self.ramp is None:
            return ema(average, new, 0.5 ** (batch_size / self.half_life))
        weight = self._weight(step, batch_size)
        return jax.tree.map(
            # The sum rounds where the weight is 1, and the first update must copy.
            lambda a, n: jnp.where(weight == 1, n, a + weight * (n - a)),
            average,
            new,
        )

    def first_share(self, steps: int, batch_size: int) -> float:
        """Returns the share of the first weights in the average after some steps.

        Args:
          steps: number of steps.
          batch_size: images per step.
        """
        if self.gamma is not None:
            return 0.0  # the first update copies
        half_life = self.half_life_in_images(batch_size) / batch_size  # in steps
        ramping = 0.0
        halvings = steps / half_life
        if self.ramp is not None:
            # At step k the half-life is k times the ramp, and sum(1/k) is about ln(n).
            ramping = min(steps, half_life / self.ramp)
            halvings = max(math.log(max(ramping, 1)) + np.euler_gamma, 1) / self.ramp
            halvings += (steps - ramping) / half_life
        return 0.5**halvings

    def half_life_in_images(self, batch_size: int) -> float:
        """Returns the images in which a weight halves; infinite for a power function.

        Args:
          batch_size: images per step.
        """
        if self.rate is not None:
            # A rate of 0 keeps nothing.
            return batch_size * math.log(0.5) / math.log(max(self.rate, 1e-30))
        return math.inf if self.half_life is None else self.half_life

    def _weight(self, step: Int[Array, ""], batch_size: int) -> Float[Array, ""]:
        """Returns 1 - rate; in float32, the rate itself is too coarse near 1."""
        if self.gamma is not None:
            # 1 - (1 - 1/k)^(gamma + 1)
            return -jnp.expm1((self.gamma + 1) * jnp.log1p(-1 / step))
        if self.half_life is not None and self.ramp is not None:
            # Counted in steps, since the number of images overflows 32 bits.
            length = jnp.minimum(self.half_life / batch_size, step * self.ramp)
            return -jnp.expm1(-jnp.log(2.0) / length)
        raise ValueError("the average has no form")


def parse(spec: str) -> Average:
    """Returns the average that a string of `config.train.averages` describes.

    Raises:
      JcmError: if there is no such form, or a number is out of bounds.
    """
    form, colon, rest = str(spec).partition(":")
    try:
        if not colon:
            return _bounded(spec, Average(rate=float(form)))
        if form == "halflife":
            half_life, slash, ramp = rest.partition("/")
            return _bounded(
                spec,
                Average(
                    half_life=float(half_life) * 1e6,
                    ramp=float(ramp) if slash else None,
                ),
            )
        if form == "power":
            return Average(gamma=gamma(float(rest)))
    except ValueError:
        pass  # not a number
    raise JcmError(f"config.train.averages: {spec!r} is unknown: {_FORMS}")


def gamma(sigma_rel: float) -> float:
    """Returns the exponent of a power function from its relative width.

    It is the largest real root of Karras et al. 2024, Algorithm 2.

    Args:
      sigma_rel: standard deviation of the weights of the average over the length of the
        training, above 0 and at most 0.28.

    Raises:
      JcmError: if it is out of bounds.
    """
    if not 0 < sigma_rel <= 0.28:
        raise JcmError(
            f"config.train.averages: the width {sigma_rel} of a power function must be"
            " above 0 and at most 0.28"
        )
    inverse = sigma_rel**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def _bounded(spec: str, average: Average) -> Average:
    """Checks the numbers of an average.

    Raises:
      JcmError: if one is out of bounds.
    """
    # Comparisons with NaN are false, so this also rejects NaN.
    fine = (
        (average.rate is None or 0 <= average.rate < 1)
        and (average.half_life is None or 0 < average.half_life < math.inf)
        and (average.ramp is None or 0 < average.ramp < math.inf)
    )
    if not fine:
        raise JcmError(
            f"config.train.averages: {spec!r} is out of bounds: a rate must be in"
            " [0, 1), a half-life and its ramp above 0"
        )
    return average


def ema(average: Params, new: Params, rate: float | Float[Array, ""]) -> Params:
    """Returns rate * average + (1 - rate) * new, leaf by leaf, in float32."""
    return jax.tree.map(lambda a, n: rate * a + (1 - rate) * n, average, new)
