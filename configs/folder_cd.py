"""Consistency distillation of a diffusion model of any folder of pictures.

Source: the method of Song et al. 2023. The settings were chosen for this project, and
the expected score depends on the pictures.

This config trains its teacher, configs/folder_edm.py, first. It takes the same flags.
"""

from jcm import config as config_lib


def get_config(mode: str = "") -> config_lib.ConfigDict:
    """Returns the config; `mode` is "" or "smoke"."""
    config = config_lib.base("cd")
    config_lib.presets().folder(config)

    config.teachers.diffusion = "configs/folder_edm.py"
    config.loss.metric = "pseudo_huber"
    config.loss.target_ema = 0.95
    config.train.num_steps = 50_000
    config.train.averages = ("0.999",)
    config.sample.sigmas = (80.0, 0.821)
    return config_lib.finish(config, mode)
