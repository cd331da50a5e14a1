#!/usr/bin/env bash
# Trains on TPUs or GPUs of a GKE cluster, as the JobSet of launch/gke_jobset.yaml.
set -euo pipefail

case ${1:-} in
"" | -h | --help)
  cat <<'USAGE'
usage: launch/gke.sh run --config=CONFIG[:smoke] [--workdir=DIR] [--FLAG=VALUE ...]
       launch/gke.sh yaml --config=CONFIG[:smoke] [--workdir=DIR] [--FLAG=VALUE ...]
       launch/gke.sh build | status | log | stop [FLAG ...]

  build     makes IMAGE of this repository and pushes it; again after every change of it
  run       creates the JobSet, which runs `python -m jcm.main` with the given flags on
            every machine; starts again where it was interrupted
  yaml      prints that JobSet
  status    the JobSet and its pods
  log       follows the log of the first process
  stop      deletes the JobSet and waits until the program has saved a checkpoint and
            ended; to go on, `run`

More flags are those of docker build or kubectl. kubectl must point at a cluster with
JobSet (https://jobset.sigs.k8s.io, 0.7 or newer) and a node pool of the machines.

  export IMAGE=us-docker.pkg.dev/my-project/my-repository/jcm BUCKET=my-bucket
  launch/gke.sh build
  launch/gke.sh run --config=configs/cifar10_cd.py   into gs://my-bucket/runs/cifar10_cd

The variables must be the same for every sub-command:

IMAGE                    of the container, in a registry; no default
BUCKET                   where runs are kept that have no --workdir; no default
JOB=jcm                  name of the JobSet
ACCELERATOR=tpu-v5-lite-podslice  as GKE calls it; nvidia-...: GPUs
TOPOLOGY=4x4             of a slice of TPUs
SLICES=1                 how many slices, each in a node pool of its own (multislice)
DEVICES=4                TPU chips of a machine, or GPUs (default: 8)
NODES=1                  machines with GPUs (of a slice, TOPOLOGY and DEVICES tell it)
SPOT=1                   on Spot machines (default: others)
SERVICE_ACCOUNT=default  of Kubernetes, which must have access to BUCKET
MAX_RESTARTS=10          after failures, lost processes included; that a machine is taken
                         away does not count
DRY_RUN=1                print the commands instead of running them
USAGE
  exit
  ;;
esac

# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

command=$1
shift
case $command in
build | run | yaml | status | log | stop) ;;
*) die "no sub-command $command: see launch/gke.sh --help" ;;
esac

JOB=${JOB:-jcm} SLICES=${SLICES:-1} MAX_RESTARTS=${MAX_RESTARTS:-10}
SERVICE_ACCOUNT=${SERVICE_ACCOUNT:-default}
ACCELERATOR=${ACCELERATOR:-tpu-v5-lite-podslice}
if [[ $ACCELERATOR == nvidia-* ]]; then
  kind=gpu extra=cuda DEVICES=${DEVICES:-8} NODES=${NODES:-1}
  [[ $SLICES == 1 ]] || die "SLICES=$SLICES is for TPUs: set NODES"
else
  kind=tpu extra=tpu DEVICES=${DEVICES:-4} TOPOLOGY=${TOPOLOGY:-4x4}
fi
for variable in SLICES DEVICES NODES; do
  [[ ${!variable:-1} =~ ^[1-9][0-9]*$ ]] ||
    die "$variable=${!variable} is not a number from 1 on"
done
if [[ $kind == tpu ]]; then
  [[ $TOPOLOGY =~ ^[0-9]+(x[0-9]+)+$ ]] ||
    die "TOPOLOGY=$TOPOLOGY is not a topology such as 4x4 or 2x2x2"
  chips=$((${TOPOLOGY//x/*}))
  ((chips % DEVICES == 0)) ||
    die "TOPOLOGY=$TOPOLOGY does not divide into machines of DEVICES=$DEVICES chips"
  NODES=$((chips / DEVICES))
fi

# Sets `arguments`. Machines may be long in coming, and waiting for them is no failure.
jobset_arguments() {
  remote_arguments "$@"
  [[ -n $(flag join_timeout "$@") ]] || arguments+=(--join_timeout=86400)
}

# A string of YAML. Kubernetes makes a variable of $(NAME), and $ of $$.
scalar() {
  local text=$1
  text=${text//\\/\\\\}
  text=${text//\"/\\\"}
  text=${text//$'\n'/\\n}
  text=${text//$'\t'/\\t}
  printf '"%s"\n' "${text//\$/\$\$}"
}

# The template, filled in.
yaml() {
  local line variable placeholder argument
  while IFS= read -r line; do
    case $line in
    *"  # tpu") [[ $kind == tpu ]] || continue ;;
    *"  # gpu") [[ $kind == gpu ]] || continue ;;
    *"  # spot") [[ ${SPOT:-0} != 0 ]] || continue ;;
    \#* | *" # "*) continue ;; # comments on the template
    esac
    line=${line%"  # $kind"}
    line=${line%"  # spot"}
    # shellcheck disable=SC2016  # the text ${ARGUMENTS}
    if [[ $line == *'${ARGUMENTS}' ]]; then
      for argument in "$@"; do
        printf '%s\n' "${line%\$*}$(scalar "$argument")"
      done
      continue
    fi
    for variable in JOB SLICES NODES DEVICES ACCELERATOR TOPOLOGY IMAGE \
      SERVICE_ACCOUNT MAX_RESTARTS; do
      placeholder="\${$variable}"
      [[ $line != *"$placeholder"* ]] ||
        line=${line//"$placeholder"/"${!variable}"}
    done
    printf '%s\n' "$line"
  done <"$root/launch/gke_jobset.yaml"
}

need_image() {
  [[ -n ${IMAGE:-} ]] ||
    die "no IMAGE: set it to a place such as us-docker.pkg.dev/PROJECT/REPOSITORY/jcm"
}

need_kubectl() {
  need kubectl "install it, https://kubernetes.io/docs/tasks/tools"
}

pods=jobset.sigs.k8s.io/jobset-name=$JOB

case $command in
build)
  need_image
  need docker "install it, https://docs.docker.com/engine/install"
  run docker build --platform=linux/amd64 "--file=$root/launch/Dockerfile" \
    "--build-arg=EXTRA=$extra" "--tag=$IMAGE" "$@" "$root"
  run docker push "$IMAGE"
  ;;
yaml)
  need_image
  jobset_arguments "$@"
  yaml "${arguments[@]}"
  ;;
run)
  need_image
  need_kubectl
  jobset_arguments "$@"
  # Not "apply", which leaves a JobSet that ended as it is.
  if dry; then
    echo "kubectl create --filename=- <<'YAML'"
    yaml "${arguments[@]}"
    echo YAML
  else
    ! kubectl get jobset "$JOB" >/dev/null 2>&1 ||
      die "there is a JobSet $JOB, which runs or has ended (launch/gke.sh status): remove" \
        "it by launch/gke.sh stop, or set JOB to another name"
    yaml "${arguments[@]}" | kubectl create --filename=-
  fi
  ;;
status)
  need_kubectl
  run kubectl get jobset "$JOB" "$@"
  run kubectl get pods "--selector=$pods" --output=wide "$@"
  ;;
log)
  need_kubectl
  first=jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0
  run exec kubectl logs --follow --tail=100 "--selector=$pods,$first" "$@"
  ;;
stop)
  need_kubectl
  # Returns once all pods have ended, and their checkpoints are saved.
  run exec kubectl delete jobset "$JOB" --cascade=foreground "$@"
  ;;
esac
