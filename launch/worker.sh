#!/usr/bin/env bash
# What launch/tpu_pod.sh runs on each worker of a TPU.
set -euo pipefail

case ${1:-} in
"" | -h | --help)
  cat <<'USAGE'
usage: launch/worker.sh install | start COMMAND [ARGUMENT ...] | loop COMMAND [...]
                        | status | stop

  install   makes .venv in this repository with jcm and what a TPU needs; gets a
            Python by uv where there is none of 3.11 or newer
  start     runs the command by `loop`, detached; its output is added to ~/jcm.log;
            refused while another one runs
  loop      runs the command, and again for as long as it ends with code 75 ("start me
            again, I go on where I stopped"), or, up to three times in a row, by a
            signal (it was killed, or JAX aborted it since that of another worker was
            lost), until somebody asks the loop to stop; an hour's run ends the row
  status    whether a command runs, and the end of the log
  stop      SIGTERM, then waits for the end; the program saves a checkpoint

WAIT=900  seconds that `stop` waits
DRY_RUN=1 print the commands instead of running them
USAGE
  exit
  ;;
esac

# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
log=$HOME/jcm.log
pid=$HOME/jcm.pid

# Locks the file. The loop and the program inherit the lock: it is free once none of them
# is left, however they ended.
lock() {
  exec 9>>"$pid"
  flock "$@" 9
}

install() {
  # shellcheck source-path=SCRIPTDIR
  source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
  # TPU VMs are Ubuntu 22.04, whose Python is 3.10.
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
  lock --nonblock || die "a run is going on (process $(cat "$pid")): stop it first"
  # A process group of its own: neither a lost connection nor a killed loop takes the
  # others along, and `stop` reaches all.
  setsid "$@" </dev/null >>"$log" 2>&1 &
  echo $! >"$pid"
  echo "$(hostname): started, the log is $log"
}

loop() {
  local code began told='' lost=0
  # `stop` signals the whole group: the program on its own, this shell once that ended.
  trap 'told=yes' TERM
  while true; do
    dry || echo "$(date '+%F %T') $(quote "$@")"
    code=75 began=$SECONDS
    [[ -n $told ]] || { code=0 && run "$@"; } || code=$?
    dry || echo "$(date '+%F %T') ended with code $code"
    [[ -z $told ]] || exit "$code"
    # Above 128 it is 128 and a signal: SIGKILL where memory was short, SIGABRT from JAX
    # where another worker's program is lost. Ctrl-C and SIGTERM are meant.
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
    echo "$(hostname): nothing runs"
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
    echo "$(hostname): nothing runs"
    return
  fi
  local group
  group=$(cat "$pid")
  kill -TERM -- "-$group" || true # it may have ended just now
  lock --wait "${WAIT:-900}" ||
    die "$(hostname): still running, see $log; the last resort is kill -KILL -- -$group"
  echo "$(hostname): stopped"
  tail -n 1 "$log"
}

case $1 in
install | status | stop | start | loop) "$@" ;;
*) die "no sub-command $1: see launch/worker.sh --help" ;;
esac
