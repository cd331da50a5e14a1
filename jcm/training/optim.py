"""The optimisers that the published models were trained with."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jcm.runtime.errors import JcmError

# The learning rate as a function of the number of completed steps.
LearningRate = Callable[[Int[Array, ""]], Float[Array, ""]]

_SCALE = {"radam": optax.scale_by_radam, "adam": optax.scale_by_adam}


def create(config: Any) -> optax.GradientTransformation:
    """Returns the direction of an optimiser (Song et al. 2023, Appendix C).

    The update of the parameters is -learning_rate(step) times the direction. The
    learning rate is not part of the optimiser, so that the state of the optimiser can
    be made new at any step.

    Args:
      config: `name` (radam or adam), `b1`, `b2`, `eps` and `grad_clip` (largest global
        norm of the gradient; 0 does not clip).

    Raises:
      JcmError: for an unknown name.
    """
    if config.name not in _SCALE:
        raise JcmError(
            f"config.optim.name={config.name!r} is unknown: use radam or adam"
        )
    return optax.chain(
        optax.clip_by_global_norm(config.grad_clip)
        if config.grad_clip
        else optax.identity(),
        _SCALE[config.name](b1=config.b1, b2=config.b2, eps=config.eps),
    )


def learning_rate(config: Any, batch_size: int, num_steps: int) -> LearningRate:
    """Returns the learning rate as a function of the number of completed steps.

    Args:
      config: `learning_rate` after the warm-up; `warmup_kimg`, the length of the linear
        warm-up from 0; `schedule`; and `decay_kimg`. "constant" keeps the rate.
        "linear" multiplies it by the share of the run that is left (CMT, Hu et al.
        2025). "inverse_sqrt" divides it by sqrt(max(images / decay, 1)) (Karras et al.
        2024, equation 67).
      batch_size: images per step, which converts images to steps.
      num_steps: length of the run.

    Raises:
      JcmError: for an unknown schedule, or without the length that it needs.
    """
    warmup, decay = (
        kimg * 1000 / batch_size for kimg in (config.warmup_kimg, config.decay_kimg)
    )
    known = {
        "constant": lambda step: 1.0,
        "linear": lambda step: jnp.maximum(num_steps - step, 0) / num_steps,
        "inverse_sqrt": lambda step: jnp.maximum(step / decay, 1.0) ** -0.5,
    }
    if config.schedule not in known:
        raise JcmError(
            f"config.optim.schedule={config.schedule!r} is unknown: use one of"
            f" {', '.join(known)}"
        )
    if config.schedule == "inverse_sqrt" and not decay:
        raise JcmError(
            "config.optim.schedule='inverse_sqrt' needs config.optim.decay_kimg: set"
            " it to the thousands of images after which the learning rate falls"
        )

    def rate(step: Int[Array, ""]) -> Float[Array, ""]:
        warm = jnp.minimum(step / warmup, 1.0) if warmup else 1.0
        return jnp.float32(config.learning_rate) * warm * known[config.schedule](step)

    return rate
