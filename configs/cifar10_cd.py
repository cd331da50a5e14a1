"""Consistency distillation on CIFAR-10 with Heun's method and LPIPS.

Source: Song et al. 2023, Table 3, and configs/cifar10_ve_cd.py of their code.
Expected score: FID 3.55 in one step, 2.93 in two steps (sigma 80, 0.5853).

With --config.loss.metric=l1, also set --config.optim.learning_rate=2e-4.
"""

from jcm import config as config_lib


def get_config(mode: str = "") -> config_lib.ConfigDict:
    """Returns the config; `mode` is "" or "smoke"."""
    config = config_lib.base("cd")
    config.teachers.diffusion = "configs/cifar10_edm.py"
    return config_lib.finish(config, mode)
