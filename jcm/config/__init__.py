"""Configs: every field with its default, the files that set fields, and checks.

    config = jcm.config.load("configs/digits_ct.py")
    config.train.num_steps = 1000

`base` returns every field with its default. `load` reads a config file, which ends with
`finish`. `check` checks the values of all fields.
"""

from ml_collections import ConfigDict as ConfigDict

from jcm.config.checks import check as check
from jcm.config.checks import recorded as recorded
from jcm.config.checks import uses_num_steps as uses_num_steps
from jcm.config.files import find as find
from jcm.config.files import finish as finish
from jcm.config.files import is_file as is_file
from jcm.config.files import load as load
from jcm.config.files import name as name
from jcm.config.files import presets as presets
from jcm.config.files import shipped as shipped
from jcm.config.tree import base as base
from jcm.config.tree import differences as differences
from jcm.config.tree import fields as fields
from jcm.config.tree import flatten as flatten
from jcm.config.tree import from_dict as from_dict

__all__ = [
    "ConfigDict",
    "base",
    "check",
    "differences",
    "fields",
    "find",
    "finish",
    "flatten",
    "from_dict",
    "is_file",
    "load",
    "name",
    "presets",
    "recorded",
    "shipped",
    "uses_num_steps",
]
