#!/usr/bin/env bash
# Runs the tests; sets everything up on the first run.
set -euo pipefail

case ${1:-} in
-h | --help)
  cat <<'USAGE'
usage: launch/test.sh [ARGUMENT ...]

Runs pytest in the repository, after making an environment (.venv) and installing jcm
with its test tools in it where needed. The arguments are pytest's, their paths
relative to the repository; without any, the whole suite runs in several processes.

  launch/test.sh
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

run cd "$root"
if [[ $# == 0 ]]; then
  # loadfile: what the tests of a file share is made once.
  set -- -n logical --maxprocesses=4 --dist=loadfile --durations=15
fi
run exec "$python" -m pytest "$@"
