"""Preconditioning: makes a denoiser D or consistency function f of a raw network F.

Both have the form c_skip(sigma) x + c_out(sigma) F(c_in(sigma) x, c_noise(sigma)),
where F is any function of (scaled input, c_noise).
"""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

RawNetwork = Callable[[Array, Array], Array]


@dataclasses.dataclass(frozen=True)
class EDM:
    """The denoiser D(x, sigma) of Karras et al. 2022, Table 1 ("Ours").

    Attributes:
      sigma_data: standard deviation of the data.
      sigma_min: smallest noise level that a sampler visits; the formulas of D do not
        use it.
    """

    sigma_data: float = 0.5
    sigma_min: float = 0.002

    def skip_and_out(
        self, sigma: Float[Array, "*b"]
    ) -> tuple[Float[Array, "*b"], Float[Array, "*b"]]:
        """Returns (c_skip, c_out) at each noise level."""
        variance = sigma**2 + self.sigma_data**2
        return self.sigma_data**2 / variance, sigma * self.sigma_data * variance**-0.5

    def __call__(
        self, network: RawNetwork, x: Float[Array, " b *d"], sigma: Float[Array, " b"]
    ) -> Float[Array, " b *d"]:
        """Estimates x0 from x = x0 + sigma z.

        Args:
          network: F(c_in x, c_noise) -> array like x.
          x: noisy images.
          sigma: noise level of each image, above 0.

        Returns:
          The estimate in float32.
        """
        per_example = (-1,) + (1,) * (x.ndim - 1)
        c_in = (sigma**2 + self.sigma_data**2) ** -0.5
        c_noise = jnp.log(sigma) / 4
        raw = network(c_in.reshape(per_example) * x, c_noise).astype(jnp.float32)
        c_skip, c_out = self.skip_and_out(sigma)
        return c_skip.reshape(per_example) * x + c_out.reshape(per_example) * raw


@dataclasses.dataclass(frozen=True)
class Consistency(EDM):
    """The consistency function f(x, sigma) of Song et al. 2023, Appendix C.

    sigma is shifted by sigma_min in c_skip and in the numerator of c_out, so that
    f(x, sigma_min) == x to the bit for every network.
    """

    def skip_and_out(
        self, sigma: Float[Array, "*b"]
    ) -> tuple[Float[Array, "*b"], Float[Array, "*b"]]:
        """Returns (c_skip, c_out) at each noise level, exactly (1, 0) at sigma_min."""
        shifted = sigma - self.sigma_min
        c_skip = self.sigma_data**2 / (shifted**2 + self.sigma_data**2)
        c_out = shifted * self.sigma_data * (sigma**2 + self.sigma_data**2) ** -0.5
        return c_skip, c_out
