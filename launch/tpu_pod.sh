#!/usr/bin/env bash
# Trains on Cloud TPU VMs, a single one or slices with many workers.
set -euo pipefail

case ${1:-} in
"" | -h | --help)
  cat <<'USAGE'
usage: launch/tpu_pod.sh run --config=CONFIG[:smoke] [--workdir=DIR] [--FLAG=VALUE ...]
       launch/tpu_pod.sh create | install | status | log | stop | delete [GCLOUD FLAG ...]

  create    asks Google Cloud for the TPU
  install   copies this repository to ~/jcm on every worker and installs it there; again
            after every change of it
  run       starts `python -m jcm.main` with the given flags on every worker and returns;
            a lost connection does not end it, and it starts again by itself for as long
            as the program ends with code 75
  status    the state of the TPU; of every worker whether it runs, and the end of its log
  log       follows the log of the first worker
  stop      SIGTERM on every worker: the program saves a checkpoint and ends; to go on,
            the same `run`
  delete    deletes the TPU and what is on its disks; gcloud asks first

  export PROJECT=my-project ZONE=us-central1-a BUCKET=my-bucket
  launch/tpu_pod.sh create
  launch/tpu_pod.sh install
  launch/tpu_pod.sh run --config=configs/cifar10_cd.py
                                     into gs://my-bucket/runs/cifar10_cd

The variables must be the same for every sub-command:

PROJECT, ZONE        of Google Cloud; no default
BUCKET               where runs are kept that have no --workdir; no default
TPU=jcm              name of the TPU
TYPE=v5litepod-16    accelerator type
VERSION              of the TPU's software (default: what Google names for TYPE)
SPOT=1               a Spot TPU: cheaper, and taken away at any time (default: on demand)
QUEUED=1             by a queued resource: waits in a queue until there is capacity
SLICES=1             several slices joined (multislice), always by a queued resource
SSH_FLAGS            more flags of gcloud's ssh and scp, such as --internal-ip
                     (for several workers they want: ssh-add ~/.ssh/google_compute_engine)
DRY_RUN=1            print the commands instead of running them
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
*) die "no sub-command $command: see launch/tpu_pod.sh --help" ;;
esac
[[ -n ${PROJECT:-} ]] || die "no PROJECT: set it to the id of a Google Cloud project"
[[ -n ${ZONE:-} ]] || die "no ZONE: set it to a zone with TPUs, such as us-central1-a"
name=${TPU:-jcm} type=${TYPE:-v5litepod-16} slices=${SLICES:-1}
[[ $slices =~ ^[1-9][0-9]*$ ]] || die "SLICES=$slices is not a number from 1 on"
need gcloud "install the Google Cloud CLI, https://cloud.google.com/sdk/docs/install"

group=tpu-vm
workers=(--worker=all)
if [[ ${QUEUED:-0} != 0 || $slices != 1 ]]; then
  group=queued-resources
  workers+=(--node=all)
fi
# shellcheck disable=SC2206  # a list separated by blanks
ssh_flags=(${SSH_FLAGS:-})

tpu() {
  local action=$1
  shift
  run gcloud compute tpus "$group" "$action" "$@" "--project=$PROJECT" "--zone=$ZONE"
}

# Runs a line of shell on every worker.
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

# The code goes as it is here, committed or not. Files that are gone here go there too.
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
  [[ $group == tpu-vm ]] || set -- --force "$@" # its slices too
  tpu delete "$name" "$@"
  ;;
esac
