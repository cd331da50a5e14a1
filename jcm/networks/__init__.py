"""Networks: F(c_in x, c_noise, labels), with parameters as plain nested dicts.

flax is used here and nowhere else. A network knows nothing of noise levels, losses
or devices.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from jcm.networks import adm, ncsnpp
from jcm.networks.layers import Levels
from jcm.runtime.errors import JcmError

Params = dict[str, Any]

_ARCHITECTURES = {
    "ncsnpp": (ncsnpp.Architecture, ncsnpp.NCSNpp),
    "adm": (adm.Architecture, adm.ADM),
}


class Network:
    """A network as two pure functions: `init(key)` and `network(params, x, ...)`.

    Attributes:
      arch: its sizes.
      shapes: shapes and types of its parameters.
    """

    def __init__(self, module: type[nnx.Module], arch: Any):
        """Builds the graph by shapes alone; no parameter is allocated.

        Args:
          module: class called with (arch, rngs).
          arch: the sizes, a frozen dataclass.
        """
        self.arch = arch
        self._module = module
        abstract = nnx.eval_shape(lambda: module(arch, nnx.Rngs(0)))
        self._graphdef, _ = nnx.split(abstract)
        self.shapes: Params = nnx.to_pure_dict(nnx.state(abstract, nnx.Param))

    def init(self, key: Key[Array, ""]) -> Params:
        """Random parameters: a nested dict of float32 arrays, repeatable by key."""
        module = self._module(self.arch, nnx.Rngs(key))
        return nnx.to_pure_dict(nnx.state(module, nnx.Param))

    def __call__(
        self,
        params: Params,
        x: Float[Array, "b h w c"],
        c_noise: Float[Array, " b"],
        labels: Int[Array, " b"] | None = None,
        dropout_keys: Key[Array, " b"] | None = None,
    ) -> Float[Array, "b h w c"]:
        """F(x, c_noise, labels) in float32; dropout only where keys are given."""
        model = nnx.merge(self._graphdef, params)
        return model(x, c_noise, labels, dropout_keys)


def architecture(
    config: Mapping[str, Any], *, image_size: int, image_channels: int, num_classes: int
) -> Levels:
    """The sizes that a config describes.

    Args:
      config: `name`, the sizes that all architectures have, and below the name of each
        what it alone has.
      image_size: height and width of the images.
      image_channels: 1 or 3.
      num_classes: 0 for an unconditional network.

    Raises:
      JcmError: for an unknown name.
    """
    config = dict(config)
    name = config.pop("name")
    if name not in _ARCHITECTURES:
        raise JcmError(
            f"config.model.name={name!r} is unknown: use one of "
            f"{', '.join(sorted(_ARCHITECTURES))}"
        )
    own = {each: config.pop(each, {}) for each in _ARCHITECTURES}[name]
    sizes = {
        key: tuple(value) if isinstance(value, list) else value  # `build` hashes it
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
    """The network that a config describes; arguments as of `architecture`.

    Raises:
      JcmError: for an unknown name, or sizes that do not fit together.
    """
    return build(
        architecture(
            config,
            image_size=image_size,
            image_channels=image_channels,
            num_classes=num_classes,
        )
    )


@functools.lru_cache(maxsize=8)  # a second of tracing, for what never changes
def build(arch: Levels) -> Network:
    """The network of these sizes.

    Raises:
      JcmError: for sizes that do not fit together.
    """
    arch.check()
    _, module = _ARCHITECTURES[_name(arch)]
    return Network(module, arch)


def describe(arch: Levels) -> dict[str, Any]:
    """The fields of `config.model` that make an architecture, for `create`."""
    name, common = _name(arch), {field.name for field in dataclasses.fields(Levels)}
    values = {f.name: getattr(arch, f.name) for f in dataclasses.fields(arch)}
    fields = {key: value for key, value in values.items() if key in common}
    own = {key: value for key, value in values.items() if key not in common}
    for key in ("image_size", "image_channels", "num_classes"):
        del fields[key]
    return {"name": name, **fields, name: own}


def _name(arch: Levels) -> str:
    return next(n for n, (kind, _) in _ARCHITECTURES.items() if type(arch) is kind)


def fingerprint(params: Params) -> str:
    """16 hexadecimal digits that tell weights from other weights, by every bit."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf).data)
    return digest.hexdigest()[:16]


def count(params: Params) -> int:
    """The number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
