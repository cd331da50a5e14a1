#!/usr/bin/env bash
# Trains, samples or evaluates on this machine; installs jcm on the first run.
set -euo pipefail

case ${1:-} in
"" | -h | --help)
  cat <<'USAGE'
usage: launch/local.sh [COMMAND] --config=CONFIG[:smoke] [--workdir=DIR]
                       [--FLAG=VALUE ...]

Runs `jcm COMMAND` with the given flags; without a command it trains. The first run
creates an environment (.venv) and installs jcm in it; an active virtual or conda
environment is used instead. The script works from any directory: paths are relative to
the current directory, and the configs of the repository are found from everywhere.

  launch/local.sh --config=configs/digits_cd.py   # trains in runs/digits_cd
  launch/local.sh evaluate --workdir=runs/digits_cd
  launch/local.sh help                            # lists all commands

Environment variables:
PYTHON=/path/to/python   create .venv with this interpreter (3.11 or newer)
JCM_EXTRAS=cuda          also install what an NVIDIA GPU needs ("tpu": a TPU)
DRY_RUN=1                print the commands without running them
USAGE
  exit
  ;;
esac

# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
prepare

# Without -P, Python would import a folder named jcm in the current directory, such as a
# clone of the repository, instead of the package.
run exec "$python" -P -m jcm.main "$@"
