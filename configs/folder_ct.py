"""Consistency training on any folder of pictures, without a teacher.

Source: the method of Song et al. 2023. The settings were chosen for this project, and
the expected score depends on the pictures.

Set the folder, the size and the network as for configs/folder_edm.py.
"""

from jcm import config as config_lib


def get_config(mode: str = "") -> config_lib.ConfigDict:
    """Returns the config; `mode` is "" or "smoke"."""
    config = config_lib.base("ct")
    config_lib.presets().folder(config)

    config.loss.metric = "pseudo_huber"
    config.loss.scales = "adaptive"
    config.train.num_steps = 100_000
    config.sample.sigmas = (80.0, 0.821)
    return config_lib.finish(config, mode)
