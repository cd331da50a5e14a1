"""Zero-shot editing with a consistency model: what is known of the result.

Song et al. 2023, Algorithm 4, samples as usual and puts back the known part of the
result after each step. The known part is some of the coordinates of the images in a
suitable basis: pixels (inpainting), luma (colorization) or means of patches
(super-resolution).
"""

import dataclasses
import functools
import math
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jcm.runtime.arrays import AnyArray, check_floats
from jcm.runtime.errors import JcmError

LUMA = (0.2989, 0.5870, 0.1140)
"""Weights of red, green and blue: ITU-R 601, as in the paper."""


@runtime_checkable
class Coordinates(Protocol):
    """An invertible linear map A of images; it keeps their shape."""

    def forward(self, x: Float[AnyArray, "b h w c"]) -> Float[AnyArray, "b h w c"]:
        """Returns A x."""

    def inverse(self, u: Float[AnyArray, "b h w c"]) -> Float[AnyArray, "b h w c"]:
        """Returns A^-1 u."""


@dataclasses.dataclass(frozen=True)
class Pixels:
    """The identity: the coordinates are the pixels."""

    def forward(self, x: Float[AnyArray, "b h w c"]) -> Float[AnyArray, "b h w c"]:
        """The same."""
        return x

    def inverse(self, u: Float[AnyArray, "b h w c"]) -> Float[AnyArray, "b h w c"]:
        """The same."""
        return u


@dataclasses.dataclass(frozen=True)
class Colours:
    """An orthogonal basis of the colours, whose first coordinate is scaled luma."""

    def forward(self, x: Float[AnyArray, "b h w c"]) -> Float[AnyArray, "b h w c"]:
        """Returns the coordinates, with luma in the first channel."""
        return _product("bhwc,cd->bhwd", x, _basis(LUMA))

    def inverse(self, u: Float[AnyArray, "b h w c"]) -> Float[AnyArray, "b h w c"]:
        """Returns the colours."""
        return _product("bhwd,cd->bhwc", u, _basis(LUMA))


@dataclasses.dataclass(frozen=True)
class Patches:
    """An orthogonal basis of square patches; the first coordinate is the scaled mean.

    Channels are separate.

    Attributes:
      factor: height and width of a patch, in pixels.
    """

    factor: int

    def forward(self, x: Float[AnyArray, "b h w c"]) -> Float[AnyArray, "b h w c"]:
        """Returns coordinates; the upper left of a patch is its mean times `factor`."""
        return self._change("bipjqc,pqrs->birjsc", x)

    def inverse(self, u: Float[AnyArray, "b h w c"]) -> Float[AnyArray, "b h w c"]:
        """Returns the pixels."""
        return self._change("birjsc,pqrs->bipjqc", u)

    def _change(self, how: str, x: AnyArray) -> AnyArray:
        """Multiplies each patch by the basis, as the einsum `how` says.

        Raises:
          JcmError: if patches do not divide the images.
        """
        batch, height, width, channels = x.shape
        p = self.factor
        if height % p or width % p:
            raise JcmError(f"patches of {p}x{p} do not divide {width}x{height}")
        patches = x.reshape(batch, height // p, p, width // p, p, channels)
        basis = _basis((1.0,) * p**2).reshape(p, p, p, p)
        return _product(how, patches, basis).reshape(x.shape)


def _product(how: str, x: AnyArray, basis: Float[np.ndarray, "..."]) -> AnyArray:
    """Returns an einsum with all digits.

    That of a NumPy array is computed by NumPy: JAX would compile a program for each
    number of images.
    """
    if isinstance(x, np.ndarray):
        return np.einsum(how, x, basis, optimize=True)
    return jnp.einsum(how, x, basis, precision="highest")


@functools.cache
def _basis(first: tuple[float, ...]) -> Float[np.ndarray, "n n"]:
    """Returns orthonormal columns, the first of which points along `first`.

    The others are arbitrary, since an edit keeps or frees all of them together.
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
    """The known part of images, in some coordinates.

    Attributes:
      coordinates: A.
      values: Float[Array, "b h w c"], A y for images y in [-1, 1]; used where `free`
        is below 1.
      free: Float[Array, "b h w c"], Omega: 1 where anything is allowed, 0 where
        `values` is kept, or between.

    The fields have no array types because samplers map over this pytree, and then they
    hold other objects.
    """

    coordinates: Coordinates
    values: Any
    free: Any

    def __call__(self, x: Float[AnyArray, "b h w c"]) -> Float[AnyArray, "b h w c"]:
        """Puts the known part into x: A^-1 [(A y)(1 - Omega) + (A x) Omega]."""
        coordinates = self.coordinates.forward(x)
        mixed = self.values * (1 - self.free) + coordinates * self.free
        return self.coordinates.inverse(mixed)

    def origin(self) -> Float[AnyArray, "b h w c"]:
        """Returns the known part with zeros for the rest: the start of Algorithm 4."""
        return self.coordinates.inverse(self.values * (1 - self.free))


def known(
    coordinates: Coordinates, y: Float[AnyArray, "b h w c"], free: AnyArray
) -> Known:
    """Returns the known part of images, given a mask over their coordinates.

    Args:
      coordinates: A.
      y: images in [-1, 1].
      free: mask over A y: 1 for what is replaced, 0 for what is kept; of any shape that
        broadcasts to that of y.

    Raises:
      JcmError: if the images are not floats.
    """
    check_floats("y", y)
    xp = np if isinstance(y, np.ndarray) else jnp
    y = xp.asarray(y, np.float32)
    free = xp.broadcast_to(xp.asarray(free, np.float32), y.shape)
    return Known(coordinates, coordinates.forward(y), free)


def slerp(
    a: Float[AnyArray, "*d"], b: Float[AnyArray, "*d"], share: float
) -> Float[Array, "*d"]:
    """Interpolates between two arrays of noise on a sphere (Song et al. 2023, App. D).

    Arrays of the same direction, between which the angle is 0, are interpolated
    linearly.

    Args:
      a: noise at share 0.
      b: noise at share 1.
      share: in [0, 1].

    Raises:
      JcmError: if the arrays have opposite directions, between which no path is the
        shortest, or if they are not floats.
    """
    check_floats("a", a)
    check_floats("b", b)
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    cosine = float(np.vdot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)))
    angle = math.acos(min(max(cosine, -1.0), 1.0))
    if angle > math.pi - 1e-6:
        raise JcmError("the noises have opposite directions: choose another pair")
    if angle < 1e-6:
        mixed = (1 - share) * a + share * b
    else:
        mixed = math.sin((1 - share) * angle) * a + math.sin(share * angle) * b
        mixed /= math.sin(angle)
    return jnp.asarray(mixed, jnp.float32)


def noise_level(images: Float[AnyArray, "n h w c"]) -> Float[np.ndarray, " n"]:
    """Estimates the standard deviation of white noise in each image.

    Donoho and Johnstone 1994: the estimate is the median absolute diagonal difference
    of 2x2 pixels, divided by 0.6745. These differences contain all of the noise and
    little of a large picture. In small pictures they also contain edges, so that the
    estimate is too high.

    Raises:
      JcmError: if the images are not floats.
    """
    check_floats("images", images)
    x = np.asarray(images, np.float64)
    details = (x[:, :-1, :-1] - x[:, :-1, 1:] - x[:, 1:, :-1] + x[:, 1:, 1:]) / 2
    return np.median(np.abs(details), axis=(1, 2, 3)) / 0.6745
