"""Consistency training on LSUN Bedroom or Cat 256x256 with LPIPS.

Source: Song et al. 2023, Table 3, and scripts/launch.sh of their PyTorch code. The
learning rate and the batch size are those of the code; the table has 1e-5 and 2048.
Expected score: FID 16.0 in one step, 7.85 in two steps (sigma 80, 3.9912) on Bedroom;
20.7 and 11.7 (sigma 80, 5.2485) on Cat.

Set the folder of pictures by --config.data.path=DIR. They are cropped to the central
square and reduced by averaging, as by the authors.
"""

from jcm import config as config_lib


def get_config(mode: str = "") -> config_lib.ConfigDict:
    """Returns the config; `mode` is "" or "smoke"."""
    config = config_lib.base("ct")
    config_lib.presets().lsun256(config)
    config.loss.scales = "adaptive"
    config.loss.start_ema = 0.95
    config.loss.end_scales = 150
    config.optim.learning_rate = 5e-5
    config.train.num_steps = 1_000_000
    config.sample.sigmas = (80.0, 3.9912)
    return config_lib.finish(config, mode)
