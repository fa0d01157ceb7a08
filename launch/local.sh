#!/usr/bin/env bash
# Several processes of one run on this machine's CPU, as on a cluster of hosts:
#
#   launch/local.sh N PYTHON-ARGUMENTS...
#   launch/local.sh 2 -m ood_jax.main --config=configs/quickstart.py --workdir=runs/two
#
# Each line of output begins with its process, [0] to [N-1]. When one fails the others are stopped,
# and its exit code is this script's. Ctrl-C and SIGTERM are passed on. PYTHON names the interpreter;
# JAX_PLATFORMS=cuda would have every process claim every GPU: for GPUs one process is enough.
set -euo pipefail

if (($# < 2)) || ! [[ $1 =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: launch/local.sh N PYTHON-ARGUMENTS..., such as launch/local.sh 2 -m ood_jax.main" >&2
  exit 2
fi
if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  echo "launch/local.sh needs bash 4.4 or newer; this is ${BASH_VERSION}" >&2
  exit 2
fi
count=$1
shift
python=${PYTHON:-python}
grace=10 # seconds between SIGTERM and SIGKILL: a process can be stuck waiting for one that is gone

export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1} # huge pages: faster steps on CPU
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')

set -m # every process in a group of its own: a Ctrl-C reaches it once, from here
pids=()
printers=()
killer=""
passed_on=""

prefix() {
  trap '' INT TERM # print until the end of what the process says
  exec sed -u "s/^/[$1] /"
}

signal_all() {
  local pid
  for pid in "${pids[@]}"; do
    kill -s "$1" -- "-$pid" 2>/dev/null || true
  done
}

stop_all() {
  [[ -z $killer ]] || return 0
  [[ -n $passed_on ]] || signal_all TERM # a second signal would cut their saving short
  (sleep "$grace" && signal_all KILL) </dev/null >/dev/null 2>&1 &
  killer=$!
}

trap 'passed_on=yes; signal_all INT' INT
trap 'passed_on=yes; signal_all TERM' TERM

for ((process = 0; process < count; process++)); do
  exec {out}> >(prefix "$process")
  printers+=($!)
  exec {err}> >(prefix "$process" >&2)
  printers+=($!)
  "$python" "$@" "--coordinator=127.0.0.1:$port" "--processes=$count" "--process=$process" \
    </dev/null >&"$out" 2>&"$err" {out}>&- {err}>&- &
  pids+=($!)
  exec {out}>&- {err}>&-
done

status=0
exec {clock}<> <(:) # never has anything to read: a sleep without a process
while ((${#pids[@]})); do
  left=()
  for pid in "${pids[@]}"; do
    # Not `wait -n`: it misses a process that ended before it was called.
    if kill -0 "$pid" 2>/dev/null; then
      left+=("$pid")
      continue
    fi
    code=0
    wait "$pid" || code=$?
    ((status != 0)) || status=$code
  done
  pids=("${left[@]}")
  ((status == 0)) || stop_all
  read -r -t 0.2 -u "$clock" || true
done
[[ -z $killer ]] || kill -- "-$killer" 2>/dev/null || true
wait "${printers[@]}" || true
exit "$status"
