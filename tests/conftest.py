"""Sets JAX up before any test imports it: 8 simulated devices, checked shapes."""

import os
import typing

import beartype
import jaxtyping

# Not forced, so that the tests can be run on an accelerator as well.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
# Compiling takes most of the time of tests this small; numbers stay the same up to
# rounding. A test that trains for long can switch it off.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

check_types = beartype.beartype(
    conf=beartype.BeartypeConf(
        # An int will do where a float is asked for.
        is_pep484_tower=True,
        # jaxtyping decorates methods one by one, where beartype cannot know Self.
        hint_overrides=beartype.FrozenDict({typing.Self: typing.Any}),
    )
)
# From here on each annotated shape and type in jcm is checked when it is used.
jaxtyping.install_import_hook("jcm", "conftest.check_types")
