"""Consistency distillation of a model of any folder of pictures.

Trains the teacher, configs/folder_edm.py, on the way; its flags hold here too.
"""

from jcm import config as config_lib


def get_config(mode: str = "") -> config_lib.ConfigDict:
    """All settings; `mode` is "" or "smoke"."""
    config = config_lib.base()
    config_lib.folder(config)

    config.method = "cd"
    config.teacher = "configs/folder_edm.py"
    config.loss.metric = "pseudo_huber"
    config.loss.target_ema = 0.95
    config.train.num_steps = 50_000
    config.train.ema_rates = (0.999,)
    config.sample.sigmas = (80.0, 0.821)
    return config_lib.finish(config, mode)
