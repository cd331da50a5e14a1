#!/usr/bin/env bash
# Trains on TPUs or GPUs of a GKE cluster, by the JobSet in launch/gke_jobset.yaml.
set -euo pipefail

case ${1:-} in
"" | -h | --help)
  cat <<'USAGE'
usage: launch/gke.sh run --config=CONFIG[:smoke] [--workdir=DIR] [--FLAG=VALUE ...]
       launch/gke.sh yaml --config=CONFIG[:smoke] [--workdir=DIR] [--FLAG=VALUE ...]
       launch/gke.sh build | status | log | stop [FLAG ...]

  build     builds the image IMAGE from this repository and pushes it; repeat it after
            every change of the code
  run       creates the JobSet, which runs `python -m jcm.main` with the given flags on
            every machine and restarts it after interruptions. The same command resumes
            a run that was stopped
  yaml      prints the JobSet
  status    prints the state of the JobSet and of its pods
  log       follows the log of the first process
  stop      deletes the JobSet and waits until the program has saved a checkpoint and
            ended

Further flags are passed on to docker build or kubectl. kubectl must be configured for
a cluster with JobSet (https://jobset.sigs.k8s.io, 0.7 or newer) and a node pool of the
machines.

  export IMAGE=us-docker.pkg.dev/my-project/my-repository/jcm BUCKET=my-bucket
  launch/gke.sh build
  launch/gke.sh run --config=configs/cifar10_cd.py
                             # trains in gs://my-bucket/runs/cifar10_cd

Environment variables, which must be the same for every command:
IMAGE                    name of the image in a registry (required)
BUCKET                   bucket for the runs without --workdir
JOB=jcm                  name of the JobSet
ACCELERATOR=tpu-v5-lite-podslice  accelerator by its GKE name; nvidia-... for GPUs
TOPOLOGY=4x4             topology of a TPU slice
SLICES=1                 TPU slices, each in its own node pool (multislice)
DEVICES=4                TPU chips of each machine, or GPUs (default for GPUs: 8)
NODES=1                  machines with GPUs. For TPUs, TOPOLOGY and DEVICES determine it
SPOT=1                   use Spot machines
SERVICE_ACCOUNT=default  Kubernetes service account, which must have access to BUCKET
MAX_RESTARTS=10          restarts after a failure, such as a lost process. Interruptions
                         and machines that were taken away do not count
DRY_RUN=1                print the commands without running them
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
*) die "unknown command $command: see launch/gke.sh --help" ;;
esac

JOB=${JOB:-jcm} SLICES=${SLICES:-1} MAX_RESTARTS=${MAX_RESTARTS:-10}
SERVICE_ACCOUNT=${SERVICE_ACCOUNT:-default}
ACCELERATOR=${ACCELERATOR:-tpu-v5-lite-podslice}
if [[ $ACCELERATOR == nvidia-* ]]; then
  kind=gpu extra=cuda DEVICES=${DEVICES:-8} NODES=${NODES:-1}
  [[ $SLICES == 1 ]] || die "SLICES=$SLICES applies to TPUs only: for GPUs, set NODES"
else
  kind=tpu extra=tpu DEVICES=${DEVICES:-4} TOPOLOGY=${TOPOLOGY:-4x4}
fi
for variable in SLICES DEVICES NODES; do
  [[ ${!variable:-1} =~ ^[1-9][0-9]*$ ]] ||
    die "$variable=${!variable} must be a whole number of at least 1"
done
if [[ $kind == tpu ]]; then
  [[ $TOPOLOGY =~ ^[0-9]+(x[0-9]+)+$ ]] ||
    die "TOPOLOGY=$TOPOLOGY must be a topology such as 4x4 or 2x2x2"
  chips=$((${TOPOLOGY//x/*}))
  ((chips % DEVICES == 0)) ||
    die "TOPOLOGY=$TOPOLOGY does not divide into machines of DEVICES=$DEVICES chips:" \
      "change one of them"
  NODES=$((chips / DEVICES))
fi

# Sets `arguments` to the flags of the program. GKE may take hours to provide all of the
# machines, so the first ones wait up to a day for the others.
jobset_arguments() {
  remote_arguments "$@"
  [[ -n $(flag join_timeout "$@") ]] || arguments+=(--join_timeout=86400)
}

# Prints $1 as a YAML string. A dollar sign is doubled, because Kubernetes replaces
# $(NAME) by the value of a variable and $$ by a single dollar sign.
scalar() {
  local text=$1
  text=${text//\\/\\\\}
  text=${text//\"/\\\"}
  text=${text//$'\n'/\\n}
  text=${text//$'\t'/\\t}
  printf '"%s"\n' "${text//\$/\$\$}"
}

# Prints the template with the values filled in; $@ are the flags of the program.
yaml() {
  local line variable placeholder argument
  while IFS= read -r line; do
    # Skip the lines for another kind of machine, and the comments of the template.
    case $line in
    *"  # tpu") [[ $kind == tpu ]] || continue ;;
    *"  # gpu") [[ $kind == gpu ]] || continue ;;
    *"  # spot") [[ ${SPOT:-0} != 0 ]] || continue ;;
    \#* | *" # "*) continue ;;
    esac
    line=${line%"  # $kind"}
    line=${line%"  # spot"}
    # shellcheck disable=SC2016  # ${ARGUMENTS} is meant literally
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
    die "IMAGE is not set: set it to the name of an image in a registry, such as" \
      "us-docker.pkg.dev/PROJECT/REPOSITORY/jcm"
}

need_kubectl() {
  need kubectl "install it: https://kubernetes.io/docs/tasks/tools"
}

pods=jobset.sigs.k8s.io/jobset-name=$JOB

case $command in
build)
  need_image
  need docker "install it: https://docs.docker.com/engine/install"
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
  # `kubectl apply` would leave a JobSet that has ended unchanged.
  if dry; then
    echo "kubectl create --filename=- <<'YAML'"
    yaml "${arguments[@]}"
    echo YAML
  else
    ! kubectl get jobset "$JOB" >/dev/null 2>&1 ||
      die "a JobSet $JOB exists already, running or ended: delete it by launch/gke.sh" \
        "stop, or set JOB to another name"
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
  # This returns after all pods have saved their checkpoint and ended.
  run exec kubectl delete jobset "$JOB" --cascade=foreground "$@"
  ;;
esac
