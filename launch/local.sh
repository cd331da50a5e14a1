#!/usr/bin/env bash
# Trains, samples or evaluates on this machine; sets everything up on the first run.
set -euo pipefail

case ${1:-} in
"" | -h | --help)
  cat <<'USAGE'
usage: launch/local.sh --config=CONFIG[:smoke] [--workdir=DIR] [--FLAG=VALUE ...]

Runs `python -m jcm.main` with the given flags, after making an environment (.venv)
and installing jcm in it where needed. Works from any directory: paths are relative
to yours, and a CONFIG that is not there is looked up in the repository.

  launch/local.sh --config=configs/digits_cd.py     into runs/digits_cd
  launch/local.sh --helpfull         all flags

PYTHON=/path/to/python   the interpreter to make .venv with (3.11 or newer)
JCM_EXTRAS=cuda          install what an NVIDIA GPU needs as well (tpu: a TPU)
DRY_RUN=1                print the commands instead of running them
USAGE
  exit
  ;;
esac

# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
prepare

find_config "$@"
# -P: in the parent of a clone named jcm, that folder would pass for the package.
run exec "$python" -P -m jcm.main "${arguments[@]}"
