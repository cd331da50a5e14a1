"""EDM diffusion model on CIFAR-10, unconditional: the teacher of cifar10_cd.

Source: Song et al. 2023, Appendix C, and configs/cifar10_k_ve.py of their code; EDM's
"config E" (no augmentation but flips). Expected FID 2.04 by Heun, 35 evaluations.
"""

from jcm import config as config_lib


def get_config(mode: str = "") -> config_lib.ConfigDict:
    """All settings; `mode` is "" or "smoke"."""
    config = config_lib.base()
    config.method = "edm"
    config.model.dropout = 0.13
    config.optim.name = "adam"
    config.optim.learning_rate = 1e-3
    config.optim.warmup_kimg = 10_000.0
    config.train.num_steps = 400_000
    # A half-life of half a million images.
    config.train.ema_rates = (0.5 ** (512 / 500_000),)
    return config_lib.finish(config, mode)
