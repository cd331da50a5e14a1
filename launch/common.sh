# shellcheck shell=bash
# Sourced by the other scripts: messages, dry runs, flags of jcm. For bash 3.2 or newer.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

die() {
  echo "$(basename "$0"): $*" >&2
  exit 1
}

dry() {
  [[ ${DRY_RUN:-0} != 0 ]]
}

# The arguments as one line of shell.
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

# Runs a command; with DRY_RUN=1 prints it instead.
run() {
  if dry; then
    [[ $1 != exec ]] || shift
    quote "$@"
  else
    "$@"
  fi
}

# Is the program $1 there? $2 tells how to get it. A dry run goes without.
need() {
  dry || command -v "$1" >/dev/null || die "$1 not found: $2"
}

# The value of flag --$1 among the other arguments; jcm takes a single dash, too.
flag() {
  local name=-$1 value='' previous='' argument
  shift
  for argument in "$@"; do
    case $argument in
    "$name"=* | "-$name"=*) value=${argument#*=} ;;
    *) [[ $previous != "$name" && $previous != "-$name" ]] || value=$argument ;;
    esac
    previous=$argument
  done
  printf '%s\n' "$value"
}

# Sets `arguments` to the given ones, with a config that is not there looked up in the
# repository.
find_config() {
  local argument file previous=''
  arguments=()
  for argument in "$@"; do
    file=
    case $argument in
    -config=* | --config=*) file=${argument#*=} ;;
    *) [[ $previous != -config && $previous != --config ]] || file=$argument ;;
    esac
    previous=$argument
    if [[ -n $file && ! -e ${file%%:*} && -e $root/${file%%:*} ]]; then
      argument=${argument%"$file"}$root/$file
    fi
    arguments+=("$argument")
  done
}

# Sets `arguments` to the given ones for machines that have a copy of the repository and
# share no disk: where no workdir is named, it is in $BUCKET.
remote_arguments() {
  local config file name
  arguments=("$@")
  config=$(flag config "$@")
  file=${config%%:*}
  [[ -z $config || -e $root/$file ]] ||
    die "no $file in the repository, whose copy the machines have: put it there, and" \
      "name it as in --config=configs/cifar10_cd.py"
  [[ -z $(flag workdir "$@") ]] || return 0
  [[ -n $config ]] || die "neither --config nor --workdir: see --help"
  [[ -n ${BUCKET:-} ]] ||
    die "no place for the run: set BUCKET to the name of a bucket, or" \
      "--workdir=gs://BUCKET/FOLDER"
  name=$(basename "$file" .py)
  [[ $config == "$file" ]] || name+=_${config#*:}
  arguments+=("--workdir=gs://${BUCKET#gs://}/runs/$name")
}
