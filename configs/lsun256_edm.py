"""EDM diffusion model on LSUN Bedroom or Cat 256x256, the teacher of lsun256_cd.

Source: Song et al. 2023, Appendix C: 600,000 steps (Cat: 300,000) of 2,048 images.
scripts/launch.sh of their PyTorch code has 256 images.
Expected score: FID 3.57 on Bedroom and 6.69 on Cat by Heun's method with 79 network
evaluations.

Set the folder of pictures by --config.data.path=DIR. They are cropped to the central
square and reduced by averaging, as by the authors.
"""

from jcm import config as config_lib


def get_config(mode: str = "") -> config_lib.ConfigDict:
    """Returns the config; `mode` is "" or "smoke"."""
    config = config_lib.base("edm")
    config_lib.presets().lsun256(config)
    config.model.dropout = 0.1
    config.optim.learning_rate = 1e-4
    config.train.batch_size = 2048
    config.train.num_steps = 600_000
    config.sample.steps = 40
    return config_lib.finish(config, mode)
