# shellcheck shell=bash
# Sourced by the other scripts: finds or makes an environment and installs jcm in it.
#
# After `prepare [EXTRA...]` the variable `python` is the interpreter to use.
#   - An active virtual or conda environment is used as it is. Otherwise the
#     environment is .venv in the repository, made on the first run.
#   - PYTHON names the interpreter to make .venv with; it wins over an active one.
#   - JCM_EXTRAS names more extras of setup.cfg to install: "cuda" or "tpu".
# Installing takes a minute, hence only after a change of setup.cfg.

# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# Is $1 a Python 3.11 or newer that can make an environment? Asked by running it:
# Debian packs venv apart, and pyenv puts names in PATH that do not run.
suits() {
  "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
    >/dev/null 2>&1
}

find_python() {
  if [[ -n ${PYTHON:-} ]]; then
    dry || suits "$PYTHON" || die "PYTHON=$PYTHON is not a Python 3.11 or newer with venv"
    echo "$PYTHON"
    return
  fi
  local candidate
  for candidate in python3 python3.13 python3.12 python3.11; do
    if suits "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  die "no Python 3.11 or newer with venv found: install one or set PYTHON to its path"
}

version() {
  "$1" -c 'import sys; print(sys.version_info[:2])' 2>/dev/null || echo none
}

find_environment() {
  local base active=${VIRTUAL_ENV:-${CONDA_PREFIX:-}}
  if [[ -n $active && -z ${PYTHON:-} ]]; then
    environment=$active
    python=$environment/bin/python
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
      die "no Python 3.11 or newer in the active environment $active: deactivate it"
    return
  fi
  environment=$root/.venv
  python=$environment/bin/python
  # venv installs pip last: without it, .venv is half made.
  if [[ -e $environment/bin/pip && $(version "$python") != none ]]; then
    [[ -n ${PYTHON:-} ]] || return 0
    [[ $(version "$python") != $(version "$PYTHON") ]] || return 0
  fi
  base=$(find_python)
  run "$base" -m venv --clear "$environment"
}

prepare() {
  local extra install key='' missing='' extras=${JCM_EXTRAS:-}
  find_environment
  # The place is part of the key: an active environment may hold another clone.
  # A dry run does not make an environment that is not there.
  [[ ! -x $python ]] || key=$("$python" -c '
import hashlib, pathlib, sys
setup = pathlib.Path(sys.argv[1], "setup.cfg").read_bytes()
print(hashlib.sha256(setup).hexdigest(), sys.version_info[:2], sys.argv[1])' "$root")
  # shellcheck disable=SC2086  # a list separated by commas or spaces
  set -- "$@" ${extras//,/ }
  for extra in base "$@"; do
    [[ -n $key && $(cat "$environment/.jcm-$extra" 2>/dev/null) == "$key" ]] ||
      missing=yes
  done
  [[ -n $missing ]] || return 0

  extras=$(IFS=, && echo "${*:+[$*]}")
  # Compiling all that is installed takes longer than installing it, and most of it
  # is never imported; what is, is compiled below or at its first use.
  install=("$python" -m pip install -q --no-compile --disable-pip-version-check)
  install+=(-e ".$extras")
  if dry; then
    echo "(cd $(quote "$root") && $(quote "${install[@]}"))"
    return
  fi
  echo "installing jcm and what it needs in $environment (once, about a minute)" >&2
  # An environment made by uv has no pip.
  "$python" -m pip --version >/dev/null 2>&1 ||
    "$python" -m ensurepip >/dev/null 2>&1 ||
    die "no pip in $environment: install it"
  # From within: a name with blanks is then no concern of pip's.
  (cd "$root" && "${install[@]}") ||
    die "the installation failed: mend what pip names above and run this again"
  # Whatever is wrong with it shows when it is run.
  env -u PYTHONDONTWRITEBYTECODE "$python" -P -c 'import jcm.main' 2>/dev/null || true
  for extra in base "$@"; do
    echo "$key" >"$environment/.jcm-$extra"
  done
}
