"""Consistency training on any folder of pictures, without a teacher.

The flags of configs/folder_edm.py hold here too.
"""

from jcm import config as config_lib


def get_config(mode: str = "") -> config_lib.ConfigDict:
    """All settings; `mode` is "" or "smoke"."""
    config = config_lib.base()
    config_lib.folder(config)

    config.method = "ct"
    config.loss.metric = "pseudo_huber"
    config.loss.scales = "adaptive"
    config.train.num_steps = 100_000
    config.train.ema_rates = (0.999,)
    config.sample.sigmas = (80.0, 0.821)
    return config_lib.finish(config, mode)
