"""Consistency distillation of a diffusion model of any folder of pictures.

Source: the method of Song et al. 2023. The settings were chosen for this project, and
the expected score depends on the pictures.

This config trains its teacher, configs/folder_edm.py, first. Set the folder, the size
and the network as for that config: teacher and student share them. The fields of
--config.train and --config.optim are those of the student. For the teacher, set those
of --config.teacher_train, such as --config.teacher_train.num_steps=20000.
"""

from jcm import config as config_lib


def get_config(mode: str = "") -> config_lib.ConfigDict:
    """Returns the config; `mode` is "" or "smoke"."""
    config = config_lib.base("cd")
    config_lib.presets().folder(config)

    config.teachers.diffusion = "configs/folder_edm.py"
    config.loss.metric = "pseudo_huber"
    config.loss.target_ema = 0.95
    config.train.num_steps = 50_000
    config.sample.sigmas = (80.0, 0.821)
    return config_lib.finish(config, mode)
