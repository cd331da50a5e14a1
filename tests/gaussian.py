"""Gaussian data, whose denoiser and consistency function have closed forms.

For x0 ~ N(mean, std^2) the marginal at sigma is N(mean, std^2 + sigma^2), and the ODE
keeps (x - mean) / sqrt(std^2 + sigma^2) constant.
"""

import dataclasses

import golden
import jax.numpy as jnp

from jcm.diffusion import denoiser
from jcm.diffusion.precond import EDM, Consistency
from jcm.networks import Network


@dataclasses.dataclass(frozen=True)
class Denoiser(denoiser.Denoiser):
    """E[x0 | x] in closed form; the network only defines the size of an image."""

    network: Network = golden.network()
    precond: EDM = EDM()
    mean: float = 0.3
    std: float = 0.5

    def raw(self, params, labels=None, dropout_keys=None):
        """Returns the F that makes this D, for samplers that precondition it."""

        def network(x_in, c_noise):
            sigma = jnp.exp(4 * c_noise)
            wide = sigma.reshape(-1, *(1,) * (x_in.ndim - 1))
            x = x_in * jnp.sqrt(wide**2 + self.precond.sigma_data**2)
            c_skip, c_out = self.precond.skip_and_out(wide)
            return (self(params, x, sigma) - c_skip * x) / c_out

        return network

    def __call__(self, params, x, sigma, labels=None, dropout_keys=None):
        sigma = sigma.reshape(-1, *(1,) * (x.ndim - 1))
        variance = self.std**2 + sigma**2
        return (self.std**2 * x + sigma**2 * self.mean) / variance


@dataclasses.dataclass(frozen=True)
class ConsistencyFunction(Denoiser):
    """The end of the trajectory through (x, sigma), at sigma_min."""

    precond: EDM = Consistency()

    def __call__(self, params, x, sigma, labels=None, dropout_keys=None):
        return trajectory(self, x, sigma, self.precond.floor)


def trajectory(data: Denoiser, x, sigma, sigma_end):
    """Returns the point at sigma_end of the trajectory through (x, sigma)."""
    sigma = jnp.reshape(sigma, (-1, *(1,) * (x.ndim - 1)))
    ratio = (data.std**2 + sigma_end**2) / (data.std**2 + sigma**2)
    return data.mean + (x - data.mean) * jnp.sqrt(ratio)
