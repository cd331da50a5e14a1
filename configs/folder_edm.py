"""EDM diffusion model of any folder of pictures. Sub-folders are classes.

Source: the method of Karras et al. 2022. The settings were chosen for this project, and
the expected score depends on the pictures.

Set the folder by --config.data.path=DIR and the size by --config.data.image_size=64,
with one more level of --config.model.ch_mult for each doubling. To train with labels,
add --config.model.class_conditional=True.
"""

from jcm import config as config_lib


def get_config(mode: str = "") -> config_lib.ConfigDict:
    """Returns the config; `mode` is "" or "smoke"."""
    config = config_lib.base("edm")
    config_lib.presets().folder(config)

    config.model.dropout = 0.1
    config.optim.name = "adam"
    config.optim.learning_rate = 1e-3
    config.optim.warmup_kimg = 50.0
    config.train.num_steps = 50_000
    return config_lib.finish(config, mode)
