"""Consistency distillation on handwritten digits (8x8), in minutes on a CPU."""

from jcm import config as config_lib


def get_config(mode: str = "") -> config_lib.ConfigDict:
    """All settings; `mode` is "" or "smoke"."""
    config = config_lib.base()
    config_lib.digits(config)
    config.method = "cd"
    config.teacher = "configs/digits_edm.py"
    config.loss.metric = "pseudo_huber"
    config.loss.target_ema = 0.95
    config.optim.name = "adam"
    config.optim.learning_rate = 1e-3
    config.train.num_steps = 800
    config.train.ema_rates = (0.99,)
    config.loss.num_scales = 12
    config.sample.sigmas = (80.0, 0.5)
    return config_lib.finish(config, mode)
