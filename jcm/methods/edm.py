"""Training of diffusion models: denoising score matching (Karras et al. 2022)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jcm.diffusion import precond
from jcm.diffusion.denoiser import Denoiser
from jcm.methods.method import Batch, Frozen, Losses, Plain, Recipe
from jcm.networks import Network, Params
from jcm.runtime.fields import Field

_SIGMA, _NOISE, _DROPOUT = range(3)


@dataclasses.dataclass(frozen=True)
class EDM(Plain):
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

    def loss(
        self,
        params: Params,
        head: Params | None,
        frozen: Frozen,
        batch: Batch,
        step: Int[Array, ""],
    ) -> Losses:
        """Returns the weighted squared error of D at random noise levels.

        See `Method.loss`.
        """
        del head, frozen, step
        normal = jax.vmap(jax.random.normal)(batch.fold(_SIGMA))
        sigma = jnp.exp(self.p_mean + self.p_std * normal)
        return Losses(self.loss_at(params, batch, sigma, batch.normal(_NOISE)))

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


def _denoiser(config: Any, network: Network) -> Denoiser:
    """Returns the denoiser D of a config."""
    return Denoiser(network, precond.EDM(sigma_data=config.noise.sigma_data))


def _create(config: Any, network: Network, teachers: Mapping[str, Denoiser]) -> EDM:
    """Returns the method of a config."""
    del teachers
    return EDM(
        denoiser=_denoiser(config, network),
        p_mean=config.loss.p_mean,
        p_std=config.loss.p_std,
    )


RECIPE = Recipe(
    create=_create,
    denoiser=_denoiser,
    uses_num_steps=lambda config: False,
    settings={
        "p_mean": Field(-1.2, "mean of ln(sigma)", least=-20, most=20),
        "p_std": Field(1.2, "standard deviation of ln(sigma)", least=0, most=20),
    },
)
"""The method `edm`."""
