"""Tests of the number of devices into which a program divides a CPU."""

import json
import os
import subprocess
import sys

# JAX is imported once. Each case is a process of its own, which starts its devices.
_PROGRAM = """
import json, os, sys, traceback, warnings
from absl import flags
import jax
from jcm import config
from jcm.runtime import distributed
warnings.simplefilter("ignore")  # JAX warns about forks, but has no threads yet.
flags.FLAGS(["jcm"])
for cores, batch_size, accumulate in json.loads(sys.argv[1]):
    if os.fork():
        os.wait()
        continue
    try:
        os.sched_getaffinity = lambda process: range(cores)
        settings = config.base()
        settings.train.batch_size, settings.train.accumulate = batch_size, accumulate
        distributed.initialize(settings)
        print(jax.device_count(), flush=True)
    except BaseException:
        traceback.print_exc()
    os._exit(0)
"""


def _devices(cases, **variables):
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    del environment["JAX_NUM_CPU_DEVICES"]
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, json.dumps(cases)],
        env=environment | variables,
        capture_output=True,
        text=True,
        timeout=200,
    )
    found = [int(line) for line in done.stdout.splitlines()]
    assert len(found) == len(cases), done.stderr
    return found


def test_a_cpu_has_as_many_devices_as_cores_if_they_divide_the_batch():
    expected = {
        # Cores, batch size and number of micro-batches.
        (1, 64, 1): 1,
        (5, 64, 1): 4,
        (64, 64, 1): 16,
        (8, 12, 1): 4,
        (8, 12, 2): 2,
    }
    assert _devices(list(expected)) == list(expected.values())


def test_a_chosen_number_of_devices_is_kept():
    assert _devices([(8, 64, 1)], JAX_NUM_CPU_DEVICES="3") == [3]
