"""Consistency models in JAX: train, sample, edit with and evaluate them.

    import jcm

    model = jcm.load("runs/digits_cd")  # or a folder, a file, a published name
    images = model.sample(16, seed=0, steps=2)  # (16, h, w, c) in [-1, 1]
    edited = model.edit.variations(images)
    jcm.save_png(edited, "digits.png")

    config = jcm.config.load("configs/digits_ct.py")
    model = jcm.train(config, workdir="runs/mine")  # data=... for your own images
    jcm.evaluate(model, scores="classifier")  # {"confident": ..., "fd": ...}
    jcm.save(model, "my_model")  # a folder to share

`help(jcm.Model)` describes a model, `help(jcm.load)` what can be loaded, and
`help(jcm.train)` what can be trained on. `print(model.edit)` lists the edits. The
namespaces hold the parts: `jcm.methods`, `jcm.networks`, `jcm.diffusion` and
`jcm.metrics`. `jcm.config` reads the configs that `jcm.train` takes.
"""

from typing import TYPE_CHECKING

from jcm.runtime import lazy as _lazy

if TYPE_CHECKING:
    from jcm import config as config
    from jcm import diffusion as diffusion
    from jcm import methods as methods
    from jcm import metrics as metrics
    from jcm import networks as networks
    from jcm.commands.api import evaluate as evaluate
    from jcm.commands.api import train as train
    from jcm.data.images import to_float as to_float
    from jcm.data.images import to_uint8 as to_uint8
    from jcm.model.loading import load as load
    from jcm.model.model import Model as Model
    from jcm.model.pictures import open_pictures as open_pictures
    from jcm.model.save import save as save
    from jcm.run.grids import save_png as save_png
    from jcm.runtime.errors import JcmError as JcmError

__version__ = "0.2.0"

# Each public name with the module that defines it. It is imported when the name is
# first used, so that `import jcm` takes no time.
_DEFINED_IN = {
    "load": "jcm.model.loading",
    "save": "jcm.model.save",
    "train": "jcm.commands.api",
    "evaluate": "jcm.commands.api",
    "Model": "jcm.model.model",
    "open_pictures": "jcm.model.pictures",
    "save_png": "jcm.run.grids",
    "to_uint8": "jcm.data.images",
    "to_float": "jcm.data.images",
    "JcmError": "jcm.runtime.errors",
    "config": "jcm.config",
    "diffusion": "jcm.diffusion",
    "methods": "jcm.methods",
    "metrics": "jcm.metrics",
    "networks": "jcm.networks",
}
__all__ = ["__version__", *_DEFINED_IN]
_lazy.namespace(__name__, _DEFINED_IN)
