"""Converts a model to a folder that can be shared.

python -m jcm.commands.convert SOURCE FOLDER [--to=jcm|diffusers] [--kind=diffusion]
                               [--image_size=64] [--ema=params]

SOURCE is anything that jcm.load opens: a workdir, a file of the original JAX or PyTorch
code or of NVlabs/edm, a diffusers folder, or the name of a published checkpoint.
"""

from collections.abc import Sequence

from absl import flags, logging

from jcm import config as config_lib
from jcm.commands import cli
from jcm.model import save
from jcm.model.loading import load
from jcm.runtime import distributed
from jcm.runtime.errors import JcmError

# What a file of another project may not say about itself.
_HINTS = {
    "kind": flags.DEFINE_enum(
        "kind", None, ("diffusion", "consistency"), "The kind of model in the file."
    ),
    "image_size": flags.DEFINE_integer(
        "image_size", None, "Height and width, if they differ from the published ones."
    ),
    "attn_resolutions": flags.DEFINE_multi_integer(
        "attn_resolutions", None, "NCSN++: an image size with attention"
    ),
    "num_heads": flags.DEFINE_integer("num_heads", None, "ADM: attention heads."),
    "head_channels": flags.DEFINE_integer(
        "head_channels", None, "ADM: channels of each attention head."
    ),
}
_EMA = flags.DEFINE_string(
    "ema", "", "The weights to convert, such as 0.9999 or params, if there are several."
)
_STEP = flags.DEFINE_integer(
    "step", 0, "The checkpoint of a workdir; 0 for the newest."
)
_TO = flags.DEFINE_enum("to", "jcm", save.FORMS, "The library that opens the folder.")
_LICENCE = flags.DEFINE_string(
    "licence", "", "Licence for the model card, such as apache-2.0."
)
_NOTES = flags.DEFINE_string("notes", "", "Notes for the model card, in Markdown.")


def main(argv: Sequence[str]) -> None:
    """Loads a model and saves it as a folder.

    Raises:
      JcmError: for any error that the user can fix.
    """
    if len(argv) != 3:
        raise JcmError(
            "name a source and a folder: python -m jcm.commands.convert SOURCE FOLDER"
        )
    distributed.initialize(config_lib.base())
    source, folder = argv[1:]
    hints = {
        name: flag.value for name, flag in _HINTS.items() if flag.value is not None
    }
    if "attn_resolutions" in hints:
        hints["attn_resolutions"] = tuple(hints["attn_resolutions"])
    model = load(source, ema=_EMA.value, step=_STEP.value, **hints)
    save.save(model, folder, to=_TO.value, licence=_LICENCE.value, notes=_NOTES.value)
    logging.info("wrote %s: jcm.load(%r) opens it", folder, folder)


if __name__ == "__main__":
    cli.run(main)
