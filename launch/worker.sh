#!/usr/bin/env bash
# What each machine of a pod does, in the folder of the code; tpu_pod.sh and jobset.sh call it:
#
#   launch/worker.sh install          a virtual environment with .[tpu,gcs], as constraints.txt has it
#   launch/worker.sh run ARGUMENTS    python -m ood_jax.main ARGUMENTS --distributed; its exit code
#   launch/worker.sh start ARGUMENTS  the same in the background, unless it is under way
#   launch/worker.sh follow           its output until it ends; its exit code
#   launch/worker.sh code             that exit code; 'running'; 'lost' = it was killed, or never ran
#
# Each process writes what it says to WORKDIR/logs/MACHINE-TIME.log too, every minute and at its end.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=shared.sh
source "$(dirname "${BASH_SOURCE[0]}")/shared.sh"

home=$HOME/.ood_jax # outlives the code, which a new run replaces
python=$home/venv/bin/python
log=$home/log

install() {
  local found="" candidate
  mkdir -p "$home"
  for candidate in python3.12 python3.11 python3.13 python3; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      found=$candidate
      break
    fi
  done
  if [[ ! -x $python ]]; then
    { [[ -n $found ]] && "$found" -m venv "$home/venv"; } || install_python
  fi
  "$python" -m pip install --quiet --constraint constraints.txt --editable '.[tpu,gcs]'
}

install_python() { # the images of TPU machines have Python 3.10
  python3 -m pip install --quiet --user uv
  rm -rf "$home/venv"
  python3 -m uv venv --quiet --seed --python 3.12 "$home/venv"
}

under_way() {
  local pid
  pid=$(cat "$home/pid" 2>/dev/null) || return 1
  [[ $(ps -o args= -p "$pid" 2>/dev/null) == *worker.sh\ run* ]] # not another one's, after a reboot
}

copy_log() { # copy_log TARGET
  "$python" -c 'if True:
    import sys
    from etils import epath
    source, target = map(epath.Path, sys.argv[1:])
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(source.read_bytes())' "$log" "$1" ||
    say "the log could not be copied to $1"
}

keep_copying() {
  exec {clock}<> <(:) # never has anything to read: a sleep without a process
  while ! read -r -t 60 -u "$clock" && kill -0 $$ 2>/dev/null; do
    copy_log "$1"
  done
}

attend() { # attend ARGUMENTS: runs it to its end
  local copy code out printer main copier passed
  workdir=$(workdir_in "$@")
  [[ -n $workdir ]] || refuse "--workdir=... is missing"
  mkdir -p "$home"
  rm -f "$home/code"
  : >"$log"
  printf '%s\n' "$*" >"$home/arguments"
  echo $$ >"$home/pid"
  copy=$workdir/logs/$(hostname)-$(date -u +%Y%m%dT%H%M%SZ).log

  exec {out}> >(trap '' INT TERM && exec tee "$log")
  printer=$!
  "$python" -m ood_jax.main "$@" --distributed </dev/null >&"$out" 2>&1 {out}>&- &
  main=$!
  keep_copying "$copy" {out}>&- &
  copier=$!
  exec {out}>&-
  # Kubernetes signals process 1 alone. A machine that shuts down signals all of them, and a second
  # SIGTERM would cut the saving short.
  trap 'passed=yes; (($$ > 1)) || kill -TERM "$main"' TERM
  while :; do
    passed="" code=0
    wait "$main" || code=$?
    [[ -n $passed ]] || break
  done
  kill "$copier" 2>/dev/null || true
  wait "$printer" || true
  copy_log "$copy"
  echo "$code" >"$home/code"
  return "$code"
}

start() {
  if under_way; then
    [[ $(<"$home/arguments") == "$*" ]] ||
      refuse "another run is under way here: $(<"$home/arguments")"
    return 0
  fi
  mkdir -p "$home"
  rm -f "$home/pid"
  setsid nohup "$0" run "$@" </dev/null >/dev/null 2>"$home/worker.log" &
  until [[ -s $home/pid ]]; do
    kill -0 $! 2>/dev/null || {
      say "it did not start: $(tail -n 1 "$home/worker.log")"
      return 1
    }
    sleep 0.1
  done
}

follow() {
  local machine
  machine=$(hostname)
  tail --pid="$(cat "$home/pid")" -s 0.5 -n +1 -f "$log" | sed -u "s/^/[${machine##*-}] /"
  exit "$(cat "$home/code" 2>/dev/null || echo 1)"
}

code() {
  if under_way; then
    echo running
  else
    cat "$home/code" 2>/dev/null || echo lost
  fi
}

case ${1-} in
  install | start | follow | code) "$@" ;;
  run)
    shift
    attend "$@"
    ;;
  *) refuse "usage: launch/worker.sh install | run ARGUMENTS | start ARGUMENTS | follow | code" ;;
esac
