#!/usr/bin/env bash
# The part of launch/tpu_pod.sh that runs on each worker of a TPU.
set -euo pipefail

case ${1:-} in
"" | -h | --help)
  cat <<'USAGE'
usage: launch/worker.sh install | start COMMAND [ARGUMENT ...] | loop COMMAND [...]
                        | status | stop

  install   creates .venv in this repository with jcm and what a TPU needs. If there is
            no Python 3.11 or newer, uv installs one
  start     runs `loop` with the command in the background and appends the output to
            ~/jcm.log. Fails while another command runs
  loop      runs the command, and starts it again when it exits with code 75 (it saved a
            checkpoint and can resume) or, up to three times in a row, when it is ended
            by a signal (it was killed, or JAX aborted it because another worker was
            lost). A start that ran for an hour resets the count. Ctrl-C and `stop` end it
  status    prints whether a command runs, and the last lines of the log
  stop      sends SIGTERM and waits until the program has saved a checkpoint and ended

Environment variables:
WAIT=900  seconds that `stop` waits
DRY_RUN=1 print the commands without running them
USAGE
  exit
  ;;
esac

# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
log=$HOME/jcm.log
pid=$HOME/jcm.pid

# Locks the file. The loop and the program inherit the lock, so it is released when both
# have ended, in whatever way.
lock() {
  exec 9>>"$pid"
  flock "$@" 9
}

install() {
  # shellcheck source-path=SCRIPTDIR
  source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
  need_device tpu
  # TPU VMs run Ubuntu 22.04, which has Python 3.10.
  if ! (find_python) >/dev/null 2>&1; then
    run python3 -m pip install -q --user uv
    run python3 -m uv python install -q 3.12
    PYTHON=python3.12
    dry || PYTHON=$(python3 -m uv python find 3.12)
    export PYTHON
  fi
  prepare tpu gcs
}

start() {
  set -- "$BASH" "$root/launch/worker.sh" loop "$@"
  if dry; then
    echo "setsid $(quote "$@") </dev/null >>$(quote "$log") 2>&1 &"
    return
  fi
  lock --nonblock ||
    die "a program is running already (process $(cat "$pid")): stop it first"
  # In a process group of its own, the program survives a lost connection and a killed
  # loop, and `stop` reaches both the loop and the program.
  setsid "$@" </dev/null >>"$log" 2>&1 &
  echo $! >"$pid"
  echo "$(hostname): started, the log is $log"
}

loop() {
  local code began stop='' lost=0
  # `stop` and Ctrl-C signal the whole group. The program handles the signal at once;
  # this shell handles it when the program has ended.
  trap 'stop=yes' TERM INT
  while true; do
    dry || echo "$(date '+%F %T') $(quote "$@")"
    # Code 75 stands if `stop` came before the program was started.
    code=75 began=$SECONDS
    [[ -n $stop ]] || { code=0 && run "$@"; } || code=$?
    dry || echo "$(date '+%F %T') exited with code $code"
    [[ -z $stop ]] || exit "$code"
    # A code above 128 is 128 plus a signal, such as SIGKILL when memory ran out, or
    # SIGABRT from JAX when another worker was lost. Ctrl-C (130) and SIGTERM (143) were
    # sent on purpose.
    ((SECONDS - began < 3600)) || lost=0
    case $code in
    75) lost=0 ;;
    130 | 143) exit "$code" ;;
    *) ((code > 128 && ++lost < 4)) || exit "$code" ;;
    esac
  done
}

status() {
  if dry; then
    quote tail -n 5 "$log"
  elif lock --nonblock; then
    echo "$(hostname): no program is running"
  else
    echo "$(hostname): running (process $(cat "$pid"))"
  fi
  dry || [[ ! -e $log ]] || tail -n 5 "$log"
}

stop() {
  if dry; then
    echo "kill -TERM -- \"-\$(cat $(quote "$pid"))\""
    return
  fi
  if lock --nonblock; then
    echo "$(hostname): no program is running"
    return
  fi
  local group wait=${WAIT:-900}
  group=$(cat "$pid")
  kill -TERM -- "-$group" || true # the group may have ended meanwhile
  lock --wait "$wait" ||
    die "$(hostname): still running after $wait s, see $log: kill it with" \
      "kill -KILL -- -$group"
  echo "$(hostname): stopped"
  tail -n 1 "$log"
}

case $1 in
install | status | stop | start | loop) "$@" ;;
*) die "unknown command $1: see launch/worker.sh --help" ;;
esac
