# shellcheck shell=bash
# Functions for the other scripts, which source this file. They work with bash 3.2, the
# version that macOS has.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# Prints an error and exits.
die() {
  echo "$(basename "$0"): $*" >&2
  exit 1
}

# Succeeds in a dry run, which prints the commands without running them.
dry() {
  [[ ${DRY_RUN:-0} != 0 ]]
}

# Prints the arguments as one line that a shell reads back unchanged. It uses quotation
# marks, because the backslashes of `printf %q` are hard to read.
quote() {
  local word line='' escaped="'\\''"
  for word in "$@"; do
    case $word in
    *[[:cntrl:]]*) word=$(printf %q "$word") ;;
    '' | *[!a-zA-Z0-9_@%+=:,./-]*) word=\'${word//\'/"$escaped"}\' ;;
    esac
    line+=" $word"
  done
  printf '%s\n' "${line# }"
}

# Runs a command, or prints it in a dry run.
run() {
  if dry; then
    [[ $1 != exec ]] || shift
    quote "$@"
  else
    "$@"
  fi
}

# Fails if the program $1 is not installed; $2 says how to get it. A dry run works
# without the program.
need() {
  dry || command -v "$1" >/dev/null || die "$1 not found: $2"
}

# Prints the value of the flag --$1 among the other arguments. As for jcm, the value may
# be the next argument.
flag() {
  local name=--$1 value='' previous='' argument
  shift
  for argument in "$@"; do
    case $argument in
    "$name"=*) value=${argument#*=} ;;
    *) [[ $previous != "$name" ]] || value=$argument ;;
    esac
    previous=$argument
  done
  printf '%s\n' "$value"
}

# Sets `arguments` to the flags for remote machines. These have a copy of the repository
# but share no disk, so a run without --workdir gets one in $BUCKET.
remote_arguments() {
  local config file name
  arguments=("$@")
  config=$(flag config "$@")
  file=${config%%:*}
  [[ -z $config || -e $root/$file ]] ||
    die "no $file in the repository, of which the machines have a copy: put the file" \
      "there and give its path as in --config=configs/cifar10_cd.py"
  [[ -z $(flag workdir "$@") ]] || return 0
  [[ -n $config ]] || die "neither --config nor --workdir is given: see --help"
  [[ -n ${BUCKET:-} ]] ||
    die "the run has no workdir: set BUCKET to the name of a bucket, or add" \
      "--workdir=gs://BUCKET/FOLDER"
  name=$(basename "$file" .py)
  [[ $config == "$file" ]] || name+=_${config#*:}
  arguments+=("--workdir=gs://${BUCKET#gs://}/runs/$name")
}
