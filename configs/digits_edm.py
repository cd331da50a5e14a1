"""EDM diffusion model on handwritten digits (8x8), the teacher of digits_cd.

Source: the method of Karras et al. 2022. The settings were chosen for this project.
Expected score: Fréchet distance of the classifier 2.13 by Heun's method with 35 network
evaluations; share of confident samples .785.
"""

from jcm import config as config_lib


def get_config(mode: str = "") -> config_lib.ConfigDict:
    """Returns the config; `mode` is "" or "smoke"."""
    config = config_lib.base("edm")
    config_lib.presets().digits(config)
    config.optim.name = "adam"
    config.optim.learning_rate = 2e-3
    config.optim.warmup_kimg = 5.0
    config.train.num_steps = 1500
    config.train.averages = ("0.998",)
    return config_lib.finish(config, mode)
