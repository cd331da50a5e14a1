"""Class-conditional consistency training on ImageNet 64x64 with LPIPS.

Source: Song et al. 2023, Table 3, and scripts/launch.sh of their PyTorch code. The
learning rate is that of the code; the table has 8e-6.
Expected score: FID 13.0 in one step, 11.1 in two steps (sigma 80, 1.9128).

Set the folder, with one sub-folder for each class, by --config.data.path=DIR. Pictures
are cropped to the central square and reduced by averaging. The published data sets of
this name were reduced in other ways: docs/data.md compares them.
"""

from jcm import config as config_lib


def get_config(mode: str = "") -> config_lib.ConfigDict:
    """Returns the config; `mode` is "" or "smoke"."""
    config = config_lib.base("ct")
    config_lib.presets().imagenet64(config)
    config.loss.scales = "adaptive"
    config.loss.start_ema = 0.95
    config.loss.end_scales = 200
    config.optim.learning_rate = 1e-4
    config.sample.sigmas = (80.0, 1.9128)
    return config_lib.finish(config, mode)
