"""Class-conditional EDM diffusion model on ImageNet 64x64, teacher of imagenet64_cd.

Source: Song et al. 2023, Appendix C, and scripts/launch.sh of their PyTorch code. That
script trains until it is stopped; the 800,000 steps here are those of CIFAR-10.
Expected score: FID 2.44 by Heun's method with 79 network evaluations.

Set the folder, with one sub-folder for each class, by --config.data.path=DIR. Pictures
are cropped to the central square and reduced by averaging. The published data sets of
this name were reduced in other ways: docs/data.md compares them.
"""

from jcm import config as config_lib


def get_config(mode: str = "") -> config_lib.ConfigDict:
    """Returns the config; `mode` is "" or "smoke"."""
    config = config_lib.base("edm")
    config_lib.presets().imagenet64(config)
    config.model.dropout = 0.1
    config.optim.learning_rate = 1e-4
    config.train.batch_size = 4096
    config.sample.steps = 40
    return config_lib.finish(config, mode)
