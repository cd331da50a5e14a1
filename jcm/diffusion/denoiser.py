"""A network F with its preconditioning: a denoiser D or a consistency function f."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Key

from jcm.diffusion.precond import Precond, RawNetwork
from jcm.networks import Conditions, Network, Params
from jcm.runtime.arrays import AnyArray, check_floats
from jcm.runtime.errors import JcmError


@dataclasses.dataclass(frozen=True)
class Denoiser:
    """A denoiser D or a consistency function f, as a pure function of its parameters.

    Attributes:
      network: F.
      precond: makes D or f of F, and says how it is sampled.
    """

    network: Network
    precond: Precond

    @property
    def kind(self) -> str:
        """What it is: "diffusion", "consistency" or "flow_map"; see `Precond`."""
        return self.precond.kind

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        arch = self.network.arch
        return arch.image_size, arch.image_size, arch.image_channels

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 if the network is unconditional."""
        return self.network.arch.num_classes

    def raw(
        self,
        params: Params,
        labels: Int[Array, " b"] | None = None,
        dropout_keys: Key[Array, " b"] | None = None,
        augment: Float[Array, "b a"] | None = None,
        guidance: Float[Array, " b"] | None = None,
    ) -> RawNetwork:
        """Returns F as a function of (scaled input, c_noise) alone.

        Args:
          params: parameters of the network.
          labels: class of each image; None if the network is unconditional.
          dropout_keys: one key per image in training, None otherwise.
          augment: how each image was augmented; None for images as they are.
          guidance: guidance strength of each image; None for 1, which is no guidance,
            or if the network takes none.
        """

        def network(x: Array, c_noise: Array) -> Array:
            given = Conditions(c_noise, labels, augment, guidance)
            return self.network(params, x, given, dropout_keys)

        return network

    def __call__(
        self,
        params: Params,
        x: Float[Array, "b h w c"],
        sigma: Float[Array, " b"],
        labels: Int[Array, " b"] | None = None,
        dropout_keys: Key[Array, " b"] | None = None,
        augment: Float[Array, "b a"] | None = None,
        guidance: Float[Array, " b"] | None = None,
    ) -> Float[Array, "b h w c"]:
        """Estimates x0 from x = x0 + sigma z.

        Args:
          params: parameters of the network.
          x: noisy images.
          sigma: noise level of each image.
          labels: see `raw`.
          dropout_keys: see `raw`.
          augment: see `raw`.
          guidance: see `raw`.

        Returns:
          Clean images in float32.

        Raises:
          JcmError: if the images are not floats.
        """
        check_floats("x", x)
        network = self.raw(params, labels, dropout_keys, augment, guidance)
        return self.precond(network, x, sigma)

    def as_labels(
        self, labels: Sequence[int | str] | AnyArray | None, count: int
    ) -> Int[AnyArray, " n"] | None:
        """Returns the labels of `count` images as int32, checked against the classes.

        Args:
          labels: class of each image, 0 to num_classes - 1; None if the network is
            unconditional. Traced labels are only cast, since their values are unknown.
          count: number of images.

        Raises:
          JcmError: if labels are missing, not needed, too many or too few, or if one
            is not a class.
        """
        classes = self.num_classes
        if labels is None and not classes:
            return None
        if not classes:
            raise JcmError("labels were given, but the model has no classes: drop them")
        if labels is None:
            raise JcmError(f"labels are needed: the model has {classes} classes")
        if isinstance(labels, jax.core.Tracer):
            return labels.astype(np.int32)
        labels = np.asarray(labels)
        if labels.dtype.kind not in "iu":
            raise JcmError(f"labels must be whole numbers, got {labels}")
        labels = labels.astype(np.int32)
        if labels.shape != (count,):
            raise JcmError(
                f"labels of shape {labels.shape} for {count} images: pass one for each"
            )
        unknown = labels[(labels < 0) | (labels >= classes)]
        if unknown.size:
            raise JcmError(
                f"label {unknown[0]} is unknown: the classes are 0 to {classes - 1}"
            )
        return labels
