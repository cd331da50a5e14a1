"""What a user sets on the page, or a program sends: checked, as actions take it.

Gradio would pass on wrong types, fetch addresses, and decode pictures of any size.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import gradio as gr

from jcm.commands.demo.folder import Folder
from jcm.runtime.arguments import number, whole
from jcm.runtime.errors import JcmError, shown

# An editor sends one layer.
_LAYERS = 8


@dataclasses.dataclass(frozen=True)
class Drawing:
    """The files of a drawing.

    Attributes:
      background: the picture that is drawn on, if there is one.
      layers: what is drawn.
      composite: both.
    """

    background: pathlib.Path | None
    layers: Sequence[pathlib.Path]
    composite: pathlib.Path | None


class Page(gr.Blocks):
    """A page whose actions get what `checked` returns, and not what gradio decodes."""

    async def preprocess_data(
        self, block_fn: Any, inputs: list[Any], *_: Any, **__: Any
    ) -> list[Any]:
        """Returns the arguments of a call as they were sent.

        Raises:
          gr.Error: if their number is wrong.
        """
        wanted = [str(control.label) for control in block_fn.inputs]
        if len(inputs) != len(wanted):
            raise gr.Error(
                f"the call has {len(inputs)} values, and the action takes"
                f" {len(wanted)}: {', '.join(wanted)}",
                print_exception=False,
            )
        return inputs


def checked(control: Any, given: Any, folder: Folder) -> Any:
    """Returns the value of a control as actions take it.

    Args:
      control: a part of the page.
      given: its value, which may be anything that JSON can hold.
      folder: of the uploads.

    Returns:
      A number for one, the chosen value for a list of choices, the path of its file for
      a picture, and a `Drawing` for an editor.

    Raises:
      JcmError: if the value does not fit the control.
    """
    name = str(control.label)
    if isinstance(control, gr.Number | gr.Slider):
        if given is None:
            raise JcmError(f"{name}: enter a number")
        least, most = control.minimum, control.maximum
        if getattr(control, "precision", None) == 0 or getattr(control, "step", 0) == 1:
            bounds = [None if each is None else int(each) for each in (least, most)]
            return whole(name, given, *bounds)
        return number(name, given, least, most)
    if isinstance(control, gr.Dropdown):
        return _choice(name, given, [value for _, value in control.choices])
    if isinstance(control, gr.Image):
        return _file(name, given, folder)
    return _drawing(name, given, folder)


def _choice(name: str, given: Any, choices: Sequence[Any]) -> Any:
    """Returns the first choice for None, and otherwise the choice that is given."""
    if given is None:
        return choices[0]
    for each in choices:
        if type(each) is type(given) and each == given:
            return each
    some = ", ".join(str(each) for each in choices[:10]) + ", ..." * (len(choices) > 10)
    raise JcmError(f"{name}={shown(given)} is no choice: use one of {some}")


def _file(name: str, given: Any, folder: Folder) -> pathlib.Path | None:
    """Returns the path of the upload that gradio's data of a file names."""
    if given is None:
        return None
    path = given.get("path") if isinstance(given, dict) else None
    if not isinstance(path, str):
        raise JcmError(f"{name}={shown(given)} is no upload: upload the picture first")
    return folder.file(path, name)


def _drawing(name: str, given: Any, folder: Folder) -> Drawing:
    """Returns the files that gradio's data of a drawing names."""
    given = {} if given is None else given
    layers = given.get("layers") or [] if isinstance(given, dict) else None
    if not isinstance(layers, list):
        raise JcmError(
            f"{name}={shown(given)} is no drawing: use background, layers and composite"
        )
    if len(layers) > _LAYERS:
        raise JcmError(f"{name}: {len(layers)} layers are more than {_LAYERS}")
    files = [_file(f"{name}, layer {i}", each, folder) for i, each in enumerate(layers)]
    return Drawing(
        _file(name, given.get("background"), folder),
        [each for each in files if each is not None],
        _file(name, given.get("composite"), folder),
    )
