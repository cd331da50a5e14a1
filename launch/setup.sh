# shellcheck shell=bash
# Finds or creates an environment and installs jcm in it. Other scripts source this file
# and call `prepare [--elsewhere] [EXTRA...]`, which sets `python` to the interpreter to
# use.
#
#   - With "cuda" or "tpu" among the extras, it fails if this machine has no such device,
#     before it makes or installs anything. --elsewhere: the devices are on other machines.
#   - An active virtual or conda environment is used. Otherwise the environment is .venv
#     in the repository, which the first run creates.
#   - PYTHON names the interpreter that creates .venv. If it is set, an active
#     environment is ignored.
#   - JCM_EXTRAS names further extras of setup.cfg to install: "cuda" or "tpu".
#
# The installation takes up to a minute, so it is repeated only when setup.cfg, the
# version of Python or the path of the repository has changed.

# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# Succeeds if $1 is Python 3.11 or newer and can create environments. The only reliable
# test is to run it: Debian ships venv as a separate package, and pyenv puts names into
# PATH that do not run.
is_suitable() {
  "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
    >/dev/null 2>&1
}

find_python() {
  if [[ -n ${PYTHON:-} ]]; then
    dry || is_suitable "$PYTHON" ||
      die "PYTHON=$PYTHON is not a Python 3.11 or newer with venv: set it to one"
    echo "$PYTHON"
    return
  fi
  local candidate
  for candidate in python3 python3.13 python3.12 python3.11; do
    if is_suitable "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  die "no Python 3.11 or newer with venv found: install one or set PYTHON to its path"
}

version() {
  "$1" -c 'import sys; print(sys.version_info[:2])' 2>/dev/null || echo none
}

# Sets `environment` and `python`.
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
  # venv installs pip last, so an environment without pip is incomplete.
  if [[ -e $environment/bin/pip && $(version "$python") != none ]]; then
    [[ -n ${PYTHON:-} ]] || return 0
    [[ $(version "$python") != $(version "$PYTHON") ]] || return 0
  fi
  base=$(find_python)
  run "$base" -m venv --clear "$environment"
}

# Succeeds if JAX can see an NVIDIA GPU. The driver has nvidia-smi; a container may have
# the devices alone. /dev/dxg is the GPU of Windows in WSL.
has_gpu() {
  if command -v nvidia-smi >/dev/null; then
    [[ $(nvidia-smi --list-gpus 2>/dev/null) == *GPU* ]]
  else
    [[ -e /dev/nvidia0 || -e /dev/nvidiactl || -e /dev/dxg ]]
  fi
}

# Succeeds if this machine has a TPU: a PCI device by Google that is neither a disk nor a
# network card, which other machines of Google Cloud have too.
has_tpu() {
  local vendor
  [[ ! -e /dev/accel0 ]] || return 0
  while read -r vendor; do
    [[ $(cat "${vendor%vendor}class") == 0x0[12]* ]] || return 0
  done < <(grep -ls 0x1ae0 /sys/bus/pci/devices/*/vendor)
  return 1
}

# Fails if an extra is for a device that this machine does not have. CUDA alone takes 6
# GB, and JAX would report an error of the plugin at every start.
need_device() {
  ! dry || return 0
  case $1 in
  cuda)
    has_gpu ||
      die "no NVIDIA GPU found here, so nothing is installed: use launch/local.sh, or" \
        "see why nvidia-smi lists none"
    ;;
  tpu)
    has_tpu ||
      die "no TPU found here, so nothing is installed: use launch/local.sh without" \
        "JCM_EXTRAS=tpu, or launch/tpu_pod.sh"
    ;;
  esac
}

# Installs jcm with extras such as [test]. --no-compile saves time, since most of what is
# installed is never imported. pip and uv run in the repository because its path may
# contain spaces.
install() {
  local pip=("$python" -m pip install -q --no-compile --disable-pip-version-check)
  if dry; then
    echo "(cd $(quote "$root") && $(quote "${pip[@]}" -e ".$1"))"
    return
  fi
  # An environment that uv created has no pip.
  "$python" -m pip --version >/dev/null 2>&1 ||
    "$python" -m ensurepip >/dev/null 2>&1 ||
    die "no pip in $environment: install it there"
  # uv takes a quarter of the time. It does not read the settings of pip, so pip follows
  # if uv fails, and if another index is set.
  if [[ $environment == "$root/.venv" ]] &&
    [[ $("$python" -m pip config list 2>/dev/null) != *.index-url=* ]] &&
    "${pip[@]}" uv 2>/dev/null &&
    (cd "$root" && "$python" -m uv -q pip install --python "$python" -e ".$1") \
      2>/dev/null; then
    return
  fi
  (cd "$root" && "${pip[@]}" -e ".$1") ||
    die "the installation failed: fix what pip reports above, then run this again"
}

prepare() {
  local extra installed missing='' extras=${JCM_EXTRAS:-} elsewhere=''
  if [[ ${1:-} == --elsewhere ]]; then
    elsewhere=yes
    shift
  fi
  # shellcheck disable=SC2086  # a list separated by commas or spaces
  set -- "$@" ${extras//,/ }
  for extra in "$@"; do
    [[ -n $elsewhere ]] || need_device "$extra"
  done
  find_environment
  # The files .jcm-EXTRA record what was installed. The path is part of it because an
  # active environment may have another clone of jcm installed.
  installed=$(version "$python" && echo "$root" && cat "$root/setup.cfg")
  for extra in base "$@"; do
    [[ $(cat "$environment/.jcm-$extra" 2>/dev/null) == "$installed" ]] || missing=yes
  done
  [[ -n $missing ]] || return 0

  extras=$(IFS=, && echo "${*:+[$*]}")
  dry ||
    echo "installing jcm and its dependencies in $environment (once, up to a minute)" >&2
  install "$extras"
  ! dry || return 0
  # The modules that jcm imports are compiled now. An error is ignored here: it appears
  # again when the program runs.
  env -u PYTHONDONTWRITEBYTECODE "$python" -P -c 'import jcm.main, jcm.commands.train,\
 jcm.commands.evaluate' 2>/dev/null || true
  for extra in base "$@"; do
    printf '%s\n' "$installed" >"$environment/.jcm-$extra"
  done
}
