"""Networks F(c_in x, conditions), whose parameters are plain nested dicts.

    from jcm import networks

    sizes = {"image_size": 32, "image_channels": 3, "num_classes": 0}
    network = networks.create(config.model.to_dict(), **sizes)
    params = network.init(jax.random.key(0))
    out = network(params, x, networks.Conditions(c_noise))

A `Network` is a pair of pure functions. `create` makes the one that `config.model`
describes; `describe` returns these fields. `build` makes one of an architecture, which
`architecture` returns: that of the module `ncsnpp` (NCSN++ and DDPM++) or `adm`.
`build_for` does the same for the sizes that a file describes.
`Network(module, arch)` wraps any module of flax that is called like these.
`fingerprint` and `count` are of parameters.

This is the only room that uses flax. A network knows nothing of noise levels, losses
or devices.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key

from jcm.networks import adm as adm
from jcm.networks import ncsnpp as ncsnpp
from jcm.networks.layers import Conditions as Conditions
from jcm.networks.sizes import UNetSizes
from jcm.runtime.errors import JcmError

__all__ = [
    "Conditions",
    "Network",
    "Params",
    "adm",
    "architecture",
    "build",
    "build_for",
    "count",
    "create",
    "describe",
    "fingerprint",
    "ncsnpp",
]

Params = dict[str, Any]
"""Parameters of a network: a nested dict of arrays."""

_Module = Callable[[Any, nnx.Rngs], nnx.Module]

_ARCHITECTURES: dict[str, tuple[type[UNetSizes], _Module]] = {
    "ncsnpp": (ncsnpp.Architecture, ncsnpp.NCSNpp),
    "adm": (adm.Architecture, adm.ADM),
}


class _SameKey(nnx.RngStream):
    """A stream of random keys for tracing, where only shapes count.

    The counter of `nnx.RngStream` would make the time of tracing a network grow with
    the square of its layers.
    """

    def __call__(self) -> Key[Array, ""]:
        return self.key[...]


class _RngsOfShapes(nnx.Rngs):
    """Random keys for a trace of which only the shapes are used."""

    def __init__(self) -> None:
        super().__init__(0)
        self.default = _SameKey(0, tag="default")


class Network:
    """A network as two pure functions: `init(key)` and `network(params, x, ...)`.

    Attributes:
      arch: the sizes of the network.
      shapes: the shapes and dtypes of its parameters, a tree of `ShapeDtypeStruct`.
    """

    def __init__(self, module: _Module, arch: UNetSizes):
        """Traces the network by shapes alone; no parameter is allocated.

        Args:
          module: a class that is called with (arch, rngs).
          arch: the sizes.
        """
        self.arch = arch
        self._module = module
        abstract = nnx.eval_shape(lambda: module(arch, _RngsOfShapes()))
        self._graphdef, _ = nnx.split(abstract)
        self.shapes: Params = nnx.to_pure_dict(nnx.state(abstract, nnx.Param))

    def init(self, key: Key[Array, ""]) -> Params:
        """Draws random parameters: a nested dict of float32 arrays.

        Args:
          key: the same key gives the same parameters.
        """
        module = self._module(self.arch, nnx.Rngs(key))
        return nnx.to_pure_dict(nnx.state(module, nnx.Param))

    def __call__(
        self,
        params: Params,
        x: Float[Array, "b h w c"],
        given: Conditions,
        dropout_keys: Key[Array, " b"] | None = None,
    ) -> Float[Array, "b h w c"]:
        """Evaluates F(x, conditions) in float32.

        Args:
          params: parameters shaped like `self.shapes`.
          x: noisy images, scaled by c_in.
          given: times, labels and other conditions of each image.
          dropout_keys: a key for each image, or None to disable dropout.

        Raises:
          JcmError: if a condition is missing, or is not one of this network's.
        """
        model = nnx.merge(self._graphdef, params)
        return model(x, given, dropout_keys)


def architecture(
    config: Mapping[str, Any], *, image_size: int, image_channels: int, num_classes: int
) -> UNetSizes:
    """Returns the sizes that a config describes.

    Args:
      config: `name`, the sizes common to all architectures, and under the name of each
        architecture the sizes that it alone has.
      image_size: height and width of the images.
      image_channels: 1 or 3.
      num_classes: 0 for an unconditional network.

    Raises:
      JcmError: if the name is unknown.
    """
    config = dict(config)
    config.pop("class_conditional", None)  # `num_classes` says it
    name = config.pop("name")
    if name not in _ARCHITECTURES:
        raise JcmError(
            f"config.model.name={name!r} is unknown: use one of "
            f"{', '.join(sorted(_ARCHITECTURES))}"
        )
    own = {each: config.pop(each, {}) for each in _ARCHITECTURES}[name]
    sizes: dict[str, Any] = {
        # A tuple can be hashed, as the cache of `build` requires.
        key: tuple(value) if isinstance(value, list) else value
        for key, value in {**config, **own}.items()
    }
    return _ARCHITECTURES[name][0](
        image_size=image_size,
        image_channels=image_channels,
        num_classes=num_classes,
        **sizes,
    )


def create(
    config: Mapping[str, Any], *, image_size: int, image_channels: int, num_classes: int
) -> Network:
    """Builds the network that a config describes; see `architecture` for arguments.

    Raises:
      JcmError: if the name is unknown or the sizes are inconsistent.
    """
    return build(
        architecture(
            config,
            image_size=image_size,
            image_channels=image_channels,
            num_classes=num_classes,
        )
    )


def build_for(arch: UNetSizes, tensors: int) -> Network:
    """Builds the network of a file.

    A small file may describe a network that takes long to build. Each layer has
    tensors, so this is known before it is built.

    Args:
      arch: the sizes that the file describes.
      tensors: the number of tensors in the file.

    Raises:
      JcmError: if the sizes are inconsistent, or there are fewer tensors than layers.
    """
    arch.check()
    if len(arch.layers) > tensors:
        raise JcmError(
            f"{tensors:,} tensors cannot be a network of {len(arch.layers):,} layers:"
            " name a complete file"
        )
    return build(arch)


@functools.lru_cache(maxsize=8)  # Tracing takes a second and always gives the same.
def build(arch: UNetSizes) -> Network:
    """Builds the network with these sizes.

    Raises:
      JcmError: if the sizes are inconsistent.
    """
    arch.check()
    _, module = _ARCHITECTURES[_name(arch)]
    return Network(module, arch)


def describe(arch: UNetSizes) -> dict[str, Any]:
    """Returns the fields of `config.model` from which `create` makes this network."""
    name = _name(arch)
    common = {field.name for field in dataclasses.fields(UNetSizes)}
    values = {f.name: getattr(arch, f.name) for f in dataclasses.fields(arch)}
    fields = {key: value for key, value in values.items() if key in common}
    own = {key: value for key, value in values.items() if key not in common}
    for key in ("image_size", "image_channels", "num_classes"):
        del fields[key]
    return {"name": name, **fields, name: own}


def _name(arch: UNetSizes) -> str:
    return next(n for n, (kind, _) in _ARCHITECTURES.items() if type(arch) is kind)


def fingerprint(params: Params) -> str:
    """Returns a hash of names and values of all parameters: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf).data)
    return digest.hexdigest()[:16]


def count(params: Params) -> int:
    """Returns the number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
