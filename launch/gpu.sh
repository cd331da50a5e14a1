#!/usr/bin/env bash
# Trains, samples or evaluates on all NVIDIA GPUs of this machine, in one process.
set -euo pipefail

case ${1:-} in
"" | -h | --help)
  cat <<'USAGE'
usage: launch/gpu.sh --config=CONFIG[:smoke] [--workdir=DIR] [--FLAG=VALUE ...]

As launch/local.sh, on the GPUs: installs what they need as well, and fails where JAX
finds none instead of going on with the CPU. It needs NVIDIA's driver, 525 or newer.

  launch/gpu.sh --config=configs/cifar10_cd.py     into runs/cifar10_cd

CUDA_VISIBLE_DEVICES=0,1  use these GPUs only (default: all)
PYTHON=/path/to/python    the interpreter to make .venv with (3.11 or newer)
DRY_RUN=1                 print the commands instead of running them

SIGTERM and Ctrl-C reach the program itself. It ends with code 75 where it saved a
checkpoint to go on from: run the same command again.
USAGE
  exit
  ;;
esac

# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
prepare cuda

find_config "$@"
run exec env JAX_PLATFORMS=cuda,cpu "$python" -P -m jcm.main "${arguments[@]}"
