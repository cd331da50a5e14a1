#!/usr/bin/env bash
# Trains, samples or evaluates on all NVIDIA GPUs of this machine, in one process.
set -euo pipefail

case ${1:-} in
"" | -h | --help)
  cat <<'USAGE'
usage: launch/gpu.sh [COMMAND] --config=CONFIG[:smoke] [--workdir=DIR]
                     [--FLAG=VALUE ...]

Does the same as launch/local.sh on the NVIDIA GPUs of this machine. It also installs
what they need. On a machine without a GPU it fails before it installs anything. The
driver must be version 525 or newer.

  launch/gpu.sh --config=configs/cifar10_cd.py    # trains in runs/cifar10_cd

SIGTERM and Ctrl-C reach the program itself: training saves a checkpoint and exits with
code 75; the same command resumes it.

Environment variables:
CUDA_VISIBLE_DEVICES=0,1  use only these GPUs (default: all)
PYTHON=/path/to/python    create .venv with this interpreter (3.11 or newer)
DRY_RUN=1                 print the commands without running them
USAGE
  exit
  ;;
esac

# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
prepare cuda

run exec env JAX_PLATFORMS=cuda,cpu "$python" -P -m jcm.main "$@"
