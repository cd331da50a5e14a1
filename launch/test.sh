#!/usr/bin/env bash
# Runs the tests; sets everything up on the first run.
set -euo pipefail

case ${1:-} in
-h | --help)
  cat <<'USAGE'
usage: launch/test.sh [quick] [ARGUMENT ...]

Runs pytest in the repository, after making an environment (.venv) and installing jcm
with its test tools in it where needed. The arguments are pytest's, their paths
relative to the repository; without any, the whole suite runs in several processes.
"quick" runs the part for the inner loop, in less than two minutes: the mathematics,
the numbers of the original code for the small network, imports, types and documents.

  launch/test.sh
  launch/test.sh quick
  launch/test.sh tests/run/test_grids.py -k png

PYTHON=/path/to/python   the interpreter to make .venv with (3.11 or newer)
JAX_PLATFORMS=cuda       run on a GPU instead of 8 simulated CPU devices
DRY_RUN=1                print the commands instead of running them
USAGE
  exit
  ;;
esac

# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
prepare test

# loadfile: the tests of a file share what they make, in one process.
parallel=(-n 3 --dist=loadfile --no-loadscope-reorder)
quick=(tests/test_rooms.py tests/test_docs.py tests/data tests/diffusion tests/methods
  tests/networks/test_fir.py tests/networks/test_layers.py tests/networks/test_ncsnpp.py
  tests/run/test_grids.py tests/run/test_writers.py tests/training/test_log.py)

run cd "$root"
if [[ $# == 0 ]]; then
  set -- "${parallel[@]}" --durations=15
elif [[ $1 == quick ]]; then
  shift
  set -- "${parallel[@]}" "${quick[@]}" "$@"
fi
run exec "$python" -m pytest "$@"
