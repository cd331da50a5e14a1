"""EDM diffusion model of any folder of pictures; sub-folders are classes.

Name the folder with --config.data.path=DIR, the size with --config.data.image_size=64
(and one more --config.model.ch_mult level for each doubling), and train with labels by
--config.model.class_conditional=True.
"""

from jcm import config as config_lib


def get_config(mode: str = "") -> config_lib.ConfigDict:
    """All settings; `mode` is "" or "smoke"."""
    config = config_lib.base()
    config_lib.folder(config)

    config.method = "edm"
    config.model.dropout = 0.1
    config.optim.name = "adam"
    config.optim.learning_rate = 1e-3
    config.optim.warmup_kimg = 50.0
    config.train.num_steps = 50_000
    config.train.ema_rates = (0.999,)
    return config_lib.finish(config, mode)
