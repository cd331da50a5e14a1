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
USAGE
  exit
  ;;
esac

# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
prepare

previous=
for argument in "$@"; do
  shift
  file=
  case $argument in
  --config=*) file=${argument#*=} ;;
  *) [[ $previous != --config ]] || file=$argument ;;
  esac
  previous=$argument
  if [[ -n $file && ! -e ${file%%:*} && -e $root/${file%%:*} ]]; then
    argument=${argument%"$file"}$root/$file
  fi
  set -- "$@" "$argument"
done

# -P: in the parent of a clone named jcm, that folder would pass for the package.
exec "$python" -P -m jcm.main "$@"
