"""Unconditional EDM diffusion model on CIFAR-10, the teacher of cifar10_cd.

Source: Song et al. 2023, Appendix C, and configs/cifar10_k_ve.py of their code. This is
"config E" of EDM, without augmentation except for flips.
Expected score: FID 2.04 by Heun's method with 35 network evaluations.
"""

from jcm import config as config_lib


def get_config(mode: str = "") -> config_lib.ConfigDict:
    """Returns the config; `mode` is "" or "smoke"."""
    config = config_lib.base("edm")
    config.model.dropout = 0.13
    config.optim.name = "adam"
    config.optim.learning_rate = 1e-3
    config.optim.warmup_kimg = 10_000.0
    config.train.num_steps = 400_000
    config.train.averages = ("halflife:0.5",)
    return config_lib.finish(config, mode)
