"""The training state in checkpoints of the original JAX code.

The code is openai/consistency_models_cifar10 (2023). A checkpoint of it holds
parameters, averages and the state of the optimiser, from which training can be
continued.
"""

import contextlib
import dataclasses
import os
from typing import Any

import numpy as np

from jcm.networks import Network, Params, ncsnpp
from jcm.pretrained import flax_file, formats, openai_jcm, released
from jcm.runtime import first_read
from jcm.runtime.errors import JcmError
from jcm.runtime.paths import expanded


@dataclasses.dataclass(frozen=True)
class TrainingState:
    """The state of a training of the original code.

    Attributes:
      step: optimiser steps done.
      params: parameters of the student.
      target_params: parameters of the target; None if the file has none.
      ema_params: averaged parameters.
      moments: state of the optimiser: count, and mu and nu as trees like `params`.
    """

    step: int
    params: Params
    target_params: Params | None
    ema_params: Params
    moments: dict[str, Any]


def read(source: str | os.PathLike, network: Network) -> TrainingState:
    """Reads the training state from a checkpoint of the original JAX code.

    Args:
      source: a file, or the name of a published checkpoint.
      network: the network that the checkpoint must fit.

    Raises:
      JcmError: if it is another kind of file, or does not fit the network.
    """
    published = released.is_name(source)
    path = released.fetch(str(source)) if published else expanded(source)
    if path.is_dir() or formats.is_torch(path):
        raise JcmError(
            f"{source} has weights but no optimiser state: start a new training from"
            " the weights with config.init.state=False"
        )
    names = ("step", "opt_state", *openai_jcm.WEIGHTS)
    download: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
    if published:
        download = first_read.comparing_download(path, whole=False)
    with download, first_read.comparing_blocks(path, names) as seen:
        found = flax_file.load(path, names, seen)
        if not isinstance(network.arch, ncsnpp.Architecture):
            raise JcmError(f"{path} holds an NCSN++: set config.model.name=ncsnpp")
        try:
            return _state(found, network.arch, network.shapes)
        except JcmError as error:
            raise JcmError(f"{path}: {error}") from error


def _state(
    found: dict[str, Any], arch: ncsnpp.Architecture, shapes: Params
) -> TrainingState:
    def tree(theirs: Any) -> Params:
        flat = flax_file.flatten(theirs)
        return openai_jcm.params(flat, arch, shapes)

    if not {"step", "opt_state", "params", "params_ema"} <= found.keys():
        raise JcmError("the file has only weights: set config.init.state=False")
    moments = flax_file.part(flax_file.part(found, "opt_state"), "0")
    if not {"count", "mu", "nu"} <= moments.keys():
        raise JcmError(
            "opt_state is not that of RAdam or Adam: set config.init.state=False"
        )
    target = found.get("target_params")
    return TrainingState(
        step=flax_file.count(found, "step"),
        params=tree(found["params"]),
        target_params=None if target is None else tree(target),
        ema_params=tree(found["params_ema"]),
        moments={
            "count": np.int32(flax_file.count(moments, "count")),
            "mu": tree(moments["mu"]),
            "nu": tree(moments["nu"]),
        },
    )
