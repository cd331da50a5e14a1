"""A network with its preconditioning: D(x, sigma) or f(x, sigma)."""

import dataclasses
import functools

from jaxtyping import Array, Float, Int, Key

from jcm.diffusion import precond
from jcm.networks import Network, Params


@dataclasses.dataclass(frozen=True)
class Denoiser:
    """A denoiser or consistency function as a pure function of its parameters."""

    network: Network
    precond: precond.EDM

    def __call__(
        self,
        params: Params,
        x: Float[Array, "b h w c"],
        sigma: Float[Array, " b"],
        labels: Int[Array, " b"] | None = None,
        dropout_keys: Key[Array, " b"] | None = None,
    ) -> Float[Array, "b h w c"]:
        """The estimate of x0 from x = x0 + sigma z.

        Args:
          params: of the network.
          x: noisy images.
          sigma: noise level of each.
          labels: class of each; None exactly for an unconditional network.
          dropout_keys: one key per image in training, None otherwise.
        """
        network = functools.partial(
            self.network, params, labels=labels, dropout_keys=dropout_keys
        )
        return self.precond(network, x, sigma)
