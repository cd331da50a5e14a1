"""Zero-shot editing: what a consistency model does to given images, untrained for it.

One routine (Song et al. 2023, Algorithm 4) samples as usual, and after each step puts
back what is known of the result, in coordinates where that is some of the numbers: the
pixels themselves, luma beside chroma, means of patches beside the rest.
"""

import dataclasses
import functools
import math
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jcm.runtime.arrays import AnyArray
from jcm.runtime.errors import JcmError

# ITU-R 601, as the paper has it.
LUMA = (0.2989, 0.5870, 0.1140)


@runtime_checkable
class Coordinates(Protocol):
    """An invertible linear map A of images; both ways keep the shape."""

    def forward(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """A x."""

    def inverse(self, u: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """A^-1 u."""


@dataclasses.dataclass(frozen=True)
class Pixels:
    """The identity."""

    def forward(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """The same."""
        return x

    def inverse(self, u: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """The same."""
        return u


@dataclasses.dataclass(frozen=True)
class Colours:
    """An orthogonal basis of the three colours; the first number is luma, scaled."""

    def forward(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Luma first."""
        return jnp.einsum("bhwc,cd->bhwd", x, _basis(LUMA), precision="highest")

    def inverse(self, u: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Colours again."""
        return jnp.einsum("bhwd,cd->bhwc", u, _basis(LUMA), precision="highest")


@dataclasses.dataclass(frozen=True)
class Patches:
    """An orthogonal basis of each square patch of each channel; its mean is the first.

    Attributes:
      factor: height and width of a patch.
    """

    factor: int

    def forward(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """The mean, times `factor`, at the upper left pixel of each patch."""
        return self._change("bipjqc,pqrs->birjsc", x)

    def inverse(self, u: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Pixels again."""
        return self._change("birjsc,pqrs->bipjqc", u)

    def _change(self, how: str, x: Array) -> Array:
        batch, height, width, channels = x.shape
        p = self.factor
        if height % p or width % p:
            raise JcmError(f"patches of {p}x{p} do not divide {width}x{height}")
        patches = x.reshape(batch, height // p, p, width // p, p, channels)
        basis = _basis((1.0,) * p**2).reshape(p, p, p, p)
        return jnp.einsum(how, patches, basis, precision="highest").reshape(x.shape)


@functools.cache
def _basis(first: tuple[float, ...]) -> Float[np.ndarray, "n n"]:
    """Orthonormal columns, of which the first points along `first`.

    The others do not matter: what is free is free in any basis of it.
    """
    size = len(first)
    columns = np.eye(size)
    columns[:, 0] = first
    basis, _ = np.linalg.qr(columns)
    return (basis * np.sign(basis[:, 0].sum())).astype(np.float32)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["values", "free"],
    meta_fields=["coordinates"],
)
@dataclasses.dataclass(frozen=True)
class Known:
    """What is known of images, in some coordinates.

    Attributes:
      coordinates: A.
      values: Float[Array, "b h w c"], A y, of images y in [-1, 1]; counts where `free`
        is below 1.
      free: Float[Array, "b h w c"], Omega: 1 where anything may be, 0 where `values`
        stays, or in between.

    The types are those of arrays; the same tree also holds parts of them, so they are
    not declared.
    """

    coordinates: Coordinates
    values: Any
    free: Any

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """A^-1 [(A y)(1 - Omega) + (A x) Omega]."""
        coordinates = self.coordinates.forward(x)
        mixed = self.values * (1 - self.free) + coordinates * self.free
        return self.coordinates.inverse(mixed)

    def origin(self) -> Float[Array, "b h w c"]:
        """The known part with zeros for the rest, where Algorithm 4 begins."""
        return self.coordinates.inverse(self.values * (1 - self.free))


def known(
    coordinates: Coordinates, y: Float[AnyArray, "b h w c"], free: AnyArray
) -> Known:
    """What of images is known, by a mask over their coordinates.

    Args:
      coordinates: where the mask tells known from free.
      y: images in [-1, 1].
      free: 1 for what is to be made, 0 for what stays; any shape that broadcasts.
    """
    y = jnp.asarray(y, jnp.float32)
    free = jnp.broadcast_to(jnp.asarray(free, jnp.float32), y.shape)
    return Known(coordinates, coordinates.forward(y), free)


def slerp(
    a: Float[AnyArray, "*d"], b: Float[AnyArray, "*d"], share: float
) -> Float[Array, "*d"]:
    """Spherical interpolation between two arrays of noise (Song et al. 2023, App. D).

    Where both point the same way, which leaves no angle to divide by, it is linear.

    Args:
      a: at share 0.
      b: at share 1.
      share: 0 to 1.

    Raises:
      JcmError: for arrays that point opposite ways, between which no way is shortest.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    cosine = np.vdot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b))
    angle = math.acos(min(max(cosine, -1.0), 1.0))
    if angle > math.pi - 1e-6:
        raise JcmError("two noises point opposite ways: choose another pair")
    if angle < 1e-6:
        mixed = (1 - share) * a + share * b
    else:
        mixed = math.sin((1 - share) * angle) * a + math.sin(share * angle) * b
        mixed /= math.sin(angle)
    return jnp.asarray(mixed, jnp.float32)


def noise_level(images: Float[AnyArray, "n h w c"]) -> Float[np.ndarray, " n"]:
    """The standard deviation of white noise in images, by the median of fine details.

    Donoho and Johnstone 1994: the diagonal differences of 2x2 pixels hold all of the
    noise and little of a picture, if that is large; of one that is itself made of
    pixels they hold enough to find too much noise.
    """
    x = np.asarray(images, np.float64)
    details = (x[:, :-1, :-1] - x[:, :-1, 1:] - x[:, 1:, :-1] + x[:, 1:, 1:]) / 2
    return np.median(np.abs(details), axis=(1, 2, 3)) / 0.6745
