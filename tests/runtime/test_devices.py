"""How many devices a program makes of a CPU."""

import os
import subprocess
import sys

import pytest

_PROGRAM = """
import os, sys
from absl import flags
os.sched_getaffinity = lambda process: range(int(sys.argv[1]))
from jcm import config
from jcm.runtime import distributed
flags.FLAGS(["jcm"])
settings = config.base()
settings.train.batch_size, settings.train.accumulate = map(int, sys.argv[2:])
distributed.initialize(settings)
import jax
print(jax.device_count())
"""


@pytest.mark.parametrize(
    ("cores", "batch_size", "accumulate", "chosen", "devices"),
    [
        (1, 64, 1, "", 1),
        (5, 64, 1, "", 4),
        (64, 64, 1, "", 8),
        (8, 12, 1, "", 4),
        (8, 12, 2, "", 2),
        (8, 64, 1, "3", 3),
    ],
)
def test_cores_become_devices(cores, batch_size, accumulate, chosen, devices):
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    del environment["JAX_NUM_CPU_DEVICES"]
    if chosen:
        environment["JAX_NUM_CPU_DEVICES"] = chosen
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *map(str, (cores, batch_size, accumulate))],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.stdout.strip() == str(devices), done.stderr
