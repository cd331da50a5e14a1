"""Turns a checkpoint into a folder that can be shared, which jcm.load opens.

python -m jcm.commands.convert SOURCE FOLDER [--to=jcm|diffusers] [--kind=edm]
                         [--image_size=64] [--ema=params]

SOURCE is whatever jcm.load opens: a workdir, a file of the original JAX or PyTorch code
or of NVlabs/edm, a folder of diffusers, or the name of a published checkpoint.
"""

from collections.abc import Sequence

from absl import flags, logging

from jcm import config as config_lib
from jcm.commands import cli
from jcm.model import model, save
from jcm.runtime import distributed
from jcm.runtime.errors import JcmError

_HINTS = {
    "kind": flags.DEFINE_enum(
        "kind", None, ("edm", "consistency"), "What a file of others is."
    ),
    "image_size": flags.DEFINE_integer(
        "image_size", None, "Height and width, where it is not that published."
    ),
    "attn_resolutions": flags.DEFINE_multi_integer(
        "attn_resolutions", None, "NCSN++: image sizes with attention."
    ),
    "num_heads": flags.DEFINE_integer("num_heads", None, "ADM: attention heads."),
    "head_channels": flags.DEFINE_integer(
        "head_channels", None, "ADM: channels of each attention head."
    ),
}
_EMA = flags.DEFINE_string("ema", "", "Which weights, where there are several.")
_STEP = flags.DEFINE_integer("step", 0, "Checkpoint of a workdir; 0: the newest.")
_TO = flags.DEFINE_enum("to", "jcm", save.FORMS, "Which library shall open it.")
_LICENCE = flags.DEFINE_string("licence", "", "For the model card: apache-2.0, ...")
_NOTES = flags.DEFINE_string("notes", "", "For the model card, in Markdown.")


def main(argv: Sequence[str]) -> None:
    """Loads and saves.

    Raises:
      JcmError: for anything the user can mend.
    """
    if len(argv) != 3:
        raise JcmError(
            "name a source and a folder: python -m jcm.commands.convert FILE DIR"
        )
    distributed.initialize(config_lib.base())
    source, folder = argv[1:]
    hints = {
        name: flag.value for name, flag in _HINTS.items() if flag.value is not None
    }
    if "attn_resolutions" in hints:
        hints["attn_resolutions"] = tuple(hints["attn_resolutions"])
    found = model.load(source, ema=_EMA.value, step=_STEP.value, **hints)
    save.save(found, folder, to=_TO.value, licence=_LICENCE.value, notes=_NOTES.value)
    logging.info("wrote %s: jcm.load(%r) opens it", folder, folder)


if __name__ == "__main__":
    cli.run(main)
