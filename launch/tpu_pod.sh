#!/usr/bin/env bash
# Trains on Cloud TPU VMs: on a single VM, or on slices with many workers.
set -euo pipefail

case ${1:-} in
"" | -h | --help)
  cat <<'USAGE'
usage: launch/tpu_pod.sh run --config=CONFIG[:smoke] [--workdir=DIR] [--FLAG=VALUE ...]
       launch/tpu_pod.sh create | install | status | log | stop | delete [FLAG ...]

  create    creates the TPU
  install   copies this repository to ~/jcm on every worker and installs it there;
            repeat it after every change of the code
  run       starts `python -m jcm.main` with the given flags on every worker and
            returns. The program survives a lost connection, and it is started again
            whenever it exits with code 75. The same command resumes a run
  status    prints the state of the TPU, and for every worker whether the program runs
            and the last lines of its log
  log       follows the log of the first worker
  stop      sends SIGTERM to the program on every worker and waits until it has saved a
            checkpoint and ended
  delete    deletes the TPU and its disks, after gcloud has asked for confirmation

Further flags are passed on to gcloud.

  export PROJECT=my-project ZONE=us-central1-a BUCKET=my-bucket
  launch/tpu_pod.sh create
  launch/tpu_pod.sh install
  launch/tpu_pod.sh run --config=configs/cifar10_cd.py
                             # trains in gs://my-bucket/runs/cifar10_cd

Environment variables, which must be the same for every command:
PROJECT, ZONE        project and zone of Google Cloud (required)
BUCKET               bucket for the runs without --workdir
TPU=jcm              name of the TPU
TYPE=v5litepod-16    accelerator type
VERSION              version of the TPU software (default: the one for TYPE)
SPOT=1               use a Spot TPU, which is cheaper but may be taken away at any time
QUEUED=1             use a queued resource, which waits until there is capacity
SLICES=1             number of slices; several are joined (multislice) and always use a
                     queued resource
SSH_FLAGS            further flags of gcloud's ssh and scp, such as --internal-ip. To
                     reach several workers, first run
                     ssh-add ~/.ssh/google_compute_engine
DRY_RUN=1            print the commands without running them
USAGE
  exit
  ;;
esac

# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

command=$1
shift
case $command in
create | install | run | status | log | stop | delete) ;;
*) die "unknown command $command: see launch/tpu_pod.sh --help" ;;
esac
[[ -n ${PROJECT:-} ]] ||
  die "PROJECT is not set: set it to the ID of a Google Cloud project"
[[ -n ${ZONE:-} ]] ||
  die "ZONE is not set: set it to a zone with TPUs, such as us-central1-a"
name=${TPU:-jcm} type=${TYPE:-v5litepod-16} slices=${SLICES:-1}
[[ $slices =~ ^[1-9][0-9]*$ ]] ||
  die "SLICES=$slices must be a whole number of at least 1"
need gcloud "install the Google Cloud CLI: https://cloud.google.com/sdk/docs/install"

group=tpu-vm
workers=(--worker=all)
if [[ ${QUEUED:-0} != 0 || $slices != 1 ]]; then
  group=queued-resources
  workers+=(--node=all)
fi
# shellcheck disable=SC2206  # a list separated by spaces
ssh_flags=(${SSH_FLAGS:-})

tpu() {
  local action=$1
  shift
  run gcloud compute tpus "$group" "$action" "$@" "--project=$PROJECT" "--zone=$ZONE"
}

# Runs a line of shell on every worker; the other arguments are flags of gcloud.
on_workers() {
  local line=$1
  shift
  tpu ssh "$name" "${workers[@]}" ${ssh_flags[@]+"${ssh_flags[@]}"} "$@" \
    "--command=$line"
}

create() {
  local version=${VERSION:-}
  if [[ -z $version ]]; then
    # https://cloud.google.com/tpu/docs/runtimes
    case $type in
    v6e-*) version=v2-alpha-tpuv6e ;;
    v5p-*) version=v2-alpha-tpuv5 ;;
    v5litepod-*) version=v2-alpha-tpuv5-lite ;;
    *) version=tpu-ubuntu2204-base ;;
    esac
  fi
  [[ ${SPOT:-0} == 0 ]] || set -- --spot "$@"
  set -- "--accelerator-type=$type" "$@"
  if [[ $group == tpu-vm ]]; then
    tpu create "$name" "--version=$version" "$@"
  elif [[ $slices == 1 ]]; then
    tpu create "$name" "--node-id=$name" "--runtime-version=$version" "$@"
  else
    tpu create "$name" "--node-count=$slices" "--runtime-version=$version" "$@"
  fi
}

# Copies the working tree, committed or not. The folders there are removed first, since
# they may contain files that were deleted here.
install() {
  local archive=$root/build/jcm.tar.gz
  run mkdir -p "$root/build"
  run tar -czf "$archive" --exclude=__pycache__ -C "$root" \
    LICENSE README.md configs jcm launch pyproject.toml setup.cfg
  tpu scp "$archive" "$name:" "${workers[@]}" ${ssh_flags[@]+"${ssh_flags[@]}"} "$@"
  on_workers "rm -rf jcm/configs jcm/jcm jcm/launch && mkdir -p jcm && tar -xzf\
 jcm.tar.gz -C jcm && bash jcm/launch/worker.sh install" "$@"
}

start() {
  remote_arguments "$@"
  on_workers "cd jcm && $(quote bash launch/worker.sh start .venv/bin/python -P \
    -m jcm.main "${arguments[@]}")"
}

case $command in
create) create "$@" ;;
install) install "$@" ;;
run) start "$@" ;;
status)
  state=state
  [[ $group == tpu-vm ]] || state=state.state
  tpu describe "$name" "--format=value($state)"
  on_workers "bash jcm/launch/worker.sh status" "$@"
  ;;
log)
  workers=(--worker=0)
  on_workers "tail -n 100 -F jcm.log" "$@"
  ;;
stop) on_workers "bash jcm/launch/worker.sh stop" "$@" ;;
delete)
  [[ $group == tpu-vm ]] || set -- --force "$@" # also deletes the slices
  tpu delete "$name" "$@"
  ;;
esac
