"""The optimisers that the published models were trained with."""

from typing import Any

import jax.numpy as jnp
import optax

from jcm.runtime.errors import JcmError


def create(config: Any, batch_size: int) -> optax.GradientTransformation:
    """Returns the optimiser of a config (Song et al. 2023, Appendix C).

    Args:
      config: `name` (radam or adam), `learning_rate`, `b1`, `b2`, `eps`,
        `warmup_kimg` (length of the linear warm-up from 0, in thousands of images)
        and `grad_clip` (largest global norm of the gradient; 0 does not clip).
      batch_size: images per step, which converts the warm-up to steps.

    Raises:
      JcmError: for an unknown name.
    """
    scale = {"radam": optax.scale_by_radam, "adam": optax.scale_by_adam}
    if config.name not in scale:
        raise JcmError(
            f"config.optim.name={config.name!r} is unknown: use radam or adam"
        )
    warmup_steps = config.warmup_kimg * 1000 / batch_size

    def step_size(count: Any) -> Any:
        warm = jnp.minimum(count / warmup_steps, 1.0) if warmup_steps else 1.0
        return -config.learning_rate * warm

    return optax.chain(
        optax.clip_by_global_norm(config.grad_clip)
        if config.grad_clip
        else optax.identity(),
        scale[config.name](b1=config.b1, b2=config.b2, eps=config.eps),
        optax.scale_by_schedule(step_size),
    )
