"""Training of diffusion models: denoising score matching (Karras et al. 2022)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jcm.diffusion import precond
from jcm.diffusion.denoiser import Denoiser
from jcm.methods.method import Batch, Frozen
from jcm.networks import Network, Params

_SIGMA, _NOISE, _DROPOUT = range(3)


@dataclasses.dataclass(frozen=True)
class EDM:
    """The EDM loss, with ln sigma ~ N(p_mean, p_std^2) (Karras et al. 2022, Table 1).

    The weight (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 is 1 / c_out^2, so that
    the squared error of F has weight 1 at every noise level. Squared errors are summed
    over pixels and channels, as in the authors' code.

    Attributes:
      denoiser: D.
      p_mean: mean of ln sigma.
      p_std: standard deviation of ln sigma.
    """

    denoiser: Denoiser
    p_mean: float = -1.2
    p_std: float = 1.2

    needs_teacher = False
    keeps_target = False
    constants = None

    def loss(
        self, params: Params, frozen: Frozen, batch: Batch, step: Int[Array, ""]
    ) -> Float[Array, " b"]:
        """Returns the weighted squared error of D at random noise levels.

        See `Method.loss`.
        """
        del frozen, step
        normal = jax.vmap(jax.random.normal)(batch.fold(_SIGMA))
        sigma = jnp.exp(self.p_mean + self.p_std * normal)
        return self.loss_at(params, batch, sigma, batch.normal(_NOISE))

    def loss_at(
        self,
        params: Params,
        batch: Batch,
        sigma: Float[Array, " b"],
        noise: Float[Array, "b h w c"],
    ) -> Float[Array, " b"]:
        """Returns the loss of each example for given noise levels and noise.

        Args:
          params: parameters of D.
          batch: images, labels and keys.
          sigma: noise level of each image.
          noise: standard normal.
        """
        x = batch.images + sigma[:, None, None, None] * noise
        x0 = self.denoiser(params, x, sigma, batch.labels, batch.fold(_DROPOUT))
        sigma_data = self.denoiser.precond.sigma_data
        weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
        return weight * jnp.sum((x0 - batch.images) ** 2, axis=(1, 2, 3))

    def curriculum(self, step: Int[Array, ""]) -> dict[str, Array]:
        """Returns no scalars, since nothing changes with the step."""
        del step
        return {}


def denoiser_from_config(config: Any, network: Network) -> Denoiser:
    """Returns the denoiser D of a config."""
    noise = config.noise
    return Denoiser(network, precond.EDM(noise.sigma_data, noise.sigma_min))


def from_config(config: Any, network: Network) -> EDM:
    """Returns the method of a config."""
    return EDM(
        denoiser=denoiser_from_config(config, network),
        p_mean=config.loss.p_mean,
        p_std=config.loss.p_std,
    )
