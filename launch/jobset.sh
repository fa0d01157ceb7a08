#!/usr/bin/env bash
# One run on a TPU slice of Google Kubernetes Engine, from this checkout to results:
#
#   launch/jobset.sh all --name=NAME --tpu=tpu-v5-lite-podslice --topology=4x4 --chips=4 \
#       -- --config=configs/dino_rot_imgn.py --workdir=gs://BUCKET/FOLDER
#
# What comes after -- goes to `python -m ood_jax.main` in every pod, with --distributed. Actions:
#
#   create   the working tree as a ConfigMap, and the JobSet of launch/jobset.yaml
#   follow   prints what the pods say, to the end. The JobSet restarts them after a preemption, after
#            a failure --retries times, not after exit 2, a mistake in the command
#   fetch    copies the workdir, less checkpoints and features, to --results (runs/NAME)
#   delete   both
#   all      all of these; what is there already is followed. Deleted in the end
#
# Ctrl-C stops the following, not the run: the same command follows again.
#
#   --tpu, --topology   the node pool's cloud.google.com/gke-tpu-accelerator and -topology
#   --chips             TPU chips of one machine; topology / chips = pods
#   --spot              on Spot machines
#   --service-account   one that may write the workdir (default: default)
#   --namespace         default: kubectl's
#   --image             with Python 3.11 or newer (python:3.12)
#   --retries=3         how many failures are answered by running again
#   --dry-run           before the action: prints every command and the JobSet, runs none
#
# Needs kubectl, signed in; gcloud for fetch. POLL: seconds between questions, 30.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=shared.sh
source "$(dirname "${BASH_SOURCE[0]}")/shared.sh"

pretended="" # the end of the JobSet in a dry run
status=0     # the exit code

kube() {
  local -a namespace=()
  [[ -z ${flag[namespace]-} ]] || namespace=("--namespace=${flag[namespace]}")
  run kubectl "${namespace[@]}" "$@"
}

hosts() { # 4x4 with 4 chips a machine: 4
  local chips=$((${flag[topology]//x/*}))
  ((chips % flag[chips] == 0)) ||
    refuse "--chips=${flag[chips]}: the $chips of --topology=${flag[topology]} are no multiple of it"
  echo $((chips / flag[chips]))
}

need_shape() {
  need tpu topology
  need_count chips ""
  [[ ${flag[topology]} =~ ^[1-9][0-9]{0,2}(x[1-9][0-9]{0,2}){1,2}$ ]] ||
    refuse "--topology=${flag[topology]}: it must be like 4x4 or 2x2x4"
  ((flag[chips] > 0)) || refuse "--chips=${flag[chips]}: 1, 4 or 8"
  hosts >/dev/null
  local name
  for name in tpu image service-account; do
    [[ ${flag[$name]} =~ ^[A-Za-z0-9][-A-Za-z0-9_./:@]*$ ]] ||
      refuse "--$name=${flag[$name]}: letters, digits and -_./:@ only"
  done
}

filled() { # launch/jobset.yaml with this run's values
  local -a spotless=(-e '/# --spot$/d')
  [[ -z ${flag[spot]-} ]] || spotless=()
  sed "${spotless[@]}" \
    -e "s|\${NAME}|${flag[name]}|g" \
    -e "s|\${RETRIES}|${flag[retries]}|g" \
    -e "s|\${HOSTS}|$(hosts)|g" \
    -e "s|\${CHIPS}|${flag[chips]}|g" \
    -e "s|\${TPU}|${flag[tpu]}|g" \
    -e "s|\${TOPOLOGY}|${flag[topology]}|g" \
    -e "s|\${SERVICE_ACCOUNT}|${flag[service-account]}|g" \
    -e "s|\${IMAGE}|${flag[image]}|g" \
    "$root/launch/jobset.yaml"
}

command_of_pod() {
  echo 'set -euo pipefail'
  # shellcheck disable=SC2016 # expands in the pod
  echo 'mkdir -p "$HOME/ood_jax" && tar xzf /launch/code.tgz -C "$HOME/ood_jax" && cd "$HOME/ood_jax"'
  echo 'launch/worker.sh install'
  echo "exec launch/worker.sh run $(quoted "${arguments[@]}")"
}

write() { # write FILE < text; a dry run prints it
  if [[ -n $dry ]]; then
    printf "+ cat >%s <<'EOF'\n%s\nEOF\n" "$(quoted "$1")" "$(cat)" >&3
  else
    cat >"$1"
  fi
}

create() {
  local bytes
  pack
  bytes=$([[ -n $dry ]] || wc -c <"$scratch/code.tgz")
  ((${bytes:-0} < 1000000)) ||
    refuse "the working tree is $((bytes)) bytes packed, a ConfigMap holds 1 MiB: have git ignore some"
  command_of_pod | write "$scratch/run.sh"
  filled | write "$scratch/jobset.yaml"
  kube delete configmap "${flag[name]}-launch" --ignore-not-found
  kube create configmap "${flag[name]}-launch" "--from-file=code.tgz=$scratch/code.tgz" \
    "--from-file=run.sh=$scratch/run.sh"
  kube create -f "$scratch/jobset.yaml"
  pretended=Completed
}

ending() { # NAME Completed, NAME Failed, NAME while it goes on; nothing = it is gone
  kube get jobset "${flag[name]}" --ignore-not-found \
    '--output=jsonpath={.metadata.name} {.status.terminalState}' && pretend "${flag[name]} $pretended"
}

exists() {
  [[ -n $(kube get jobset "${flag[name]}" --ignore-not-found --output=name) ]]
}

follow() { # sets `status`
  local pods="jobset.sigs.k8s.io/jobset-name=${flag[name]}" now
  local -a since=()
  while :; do
    kube logs --follow --prefix --tail=-1 "--selector=$pods" --max-log-requests=1000 "${since[@]}" ||
      kube get pods "--selector=$pods" --no-headers || true # not yet running: what holds them up
    since=("--since-time=$(date -u +%Y-%m-%dT%H:%M:%SZ)")
    [[ -n $dry ]] || sleep "$poll" # until the JobSet knows that its pods ended
    now=$(ending) || now=unknown
    case $now in
      *\ Completed) return 0 ;;
      *\ Failed) break ;;
      unknown) say "kubectl does not answer" ;;
      "")
        say "${flag[name]} is gone"
        status=1
        return 0
        ;;
    esac
  done
  explain
}

explain() { # says why it failed, and sets `status`: 2 = a mistake in the command
  local why
  why=$(kube get jobset "${flag[name]}" \
    '--output=jsonpath={range .status.conditions[?(@.type=="Failed")]}{.reason}: {.message}{end}')
  say "failed: $why"
  status=1
  [[ $why != FailJobSet* ]] || status=2 # the one rule that says so is for exit 2
}

delete() {
  kube delete jobset "${flag[name]}" --ignore-not-found
  kube delete configmap "${flag[name]}-launch" --ignore-not-found
}

all() {
  if exists; then
    say "${flag[name]} is there already: it is followed, as it is"
  else
    create
  fi
  follow
  fetch || say "nothing was fetched: launch/jobset.sh fetch tries again"
  delete
}

main() {
  parse 'create follow fetch delete all' \
    'name tpu topology chips retries results namespace image service-account' 'spot' "$@"
  need_name
  need_count retries 3
  flag[image]=${flag[image]-python:3.12}
  flag[service-account]=${flag[service-account]-default}
  [[ $action != create && $action != all ]] || need_shape
  [[ $action == follow || $action == delete ]] || need_workdir
  trap 'say "no longer followed; ${flag[name]} goes on until launch/jobset.sh delete"; exit 130' INT
  case $action in
    create) create ;;
    follow) follow ;;
    fetch) fetch ;;
    delete) delete ;;
    all) all ;;
  esac
  exit "$status"
}

main "$@"
