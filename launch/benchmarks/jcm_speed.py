"""`jcm benchmark speed` with random weights in place of those of LPIPS.

    python launch/benchmarks/jcm_speed.py --config=configs/cifar10_cd.py

The published weights need not be downloaded to measure the speed of a step.
"""

import sys

from cases import random_weights

from jcm import main
from jcm.metrics import weights
from jcm.runtime import large_pages


def run() -> None:
    """Runs the command with the arguments of the command line."""
    large_pages.restart("jcm_speed.py")  # as `jcm` does
    weights.read = random_weights
    sys.argv[1:1] = ["benchmark", "speed"]
    main.command_line()


if __name__ == "__main__":
    run()
