"""The fields of `config.sample` that a command does not use for a kind of model."""

from collections.abc import Collection
from typing import Any

from jcm import methods
from jcm.model import build
from jcm.runtime.errors import JcmError

_SIGMAS, _SOLVER = ("sigmas",), ("steps", "solver")


def check(command: str, kind: str, config: Any, given: Collection[str]) -> None:
    """Checks that a command uses the ways of sampling that the user gave.

    Args:
      command: its name, such as "sample".
      kind: that of the model, see `Model.kind`.
      config: the whole config. Its diffusion teachers are trained, sampled or evaluated
        together with the model, so they use the fields of diffusion models.
      given: dotted names of the fields that the command line set.

    Raises:
      JcmError: names the first field that is not used, and what to set instead.
    """
    unused, remedy = _unused(command, kind, config)
    for name in unused:
        if f"sample.{name}" in given:
            raise JcmError(
                f"jcm {command} does not use config.sample.{name} for a {kind} model:"
                f" {remedy}"
            )


def check_training(config: Any, given: Collection[str]) -> None:
    """Checks that training, and the evaluation after it, use the fields of a user.

    Args:
      config: the whole config.
      given: dotted names of the fields that the command line set.

    Raises:
      JcmError: see `check`.
    """
    denoiser = methods.denoiser(config, build.network(config, num_classes=2))
    check("train", denoiser.kind, config, given)


def _unused(command: str, kind: str, config: Any) -> tuple[tuple[str, ...], str]:
    """Returns the names of the fields without use, and what to set instead."""
    if command == "edit":
        return (*_SIGMAS, *_SOLVER), "set the noise levels of the steps by --sigmas"
    if command == "search":
        return (*_SIGMAS, *_SOLVER), "set config.search.steps"
    if kind == "diffusion":
        return _SIGMAS, "set config.sample.steps and config.sample.solver"
    if (
        command != "sample"
        and any(config.teachers.values())
        and not config.sample.model
    ):
        return (), ""
    return _SOLVER, "set config.sample.sigmas, which has one noise level for each step"
