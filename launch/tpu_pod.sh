#!/usr/bin/env bash
# One run on a slice of Cloud TPU machines, from this checkout to results:
#
#   launch/tpu_pod.sh all --name=NAME --project=P --zone=Z --accelerator=TYPE --runtime=VERSION \
#       -- --config=configs/dino_rot_imgn.py --workdir=gs://BUCKET/FOLDER
#
# What comes after -- goes to `python -m ood_jax.main` on every machine, with --distributed. Actions:
#
#   create   asks for the machines (a queued resource) and waits for them
#   install  sends the working tree, installs it with constraints.txt
#   run      starts the run, unless it is under way, and follows it to its end
#   fetch    copies the workdir, less checkpoints and features, to --results (runs/NAME)
#   delete   gives the machines back
#   all      all of these: again after a preemption, on new machines; again after a failure, --retries
#            times; not after exit 2, a mistake in the command. The machines are deleted in the end
#
# Ctrl-C stops the following, not the run: the same command follows again.
#
#   --project, --zone   or CLOUDSDK_CORE_PROJECT, CLOUDSDK_COMPUTE_ZONE
#   --accelerator       v5litepod-16, v6e-64, ...
#   --runtime           the machines' image: v2-alpha-tpuv5-lite, v2-alpha-tpuv6e, ...
#   --spot              cheaper machines that may be taken away
#   --retries=3         how many failures are answered by running again
#   --create-flag=FLAG  one more for gcloud ... queued-resources create, such as --network=N
#   --dry-run           before the action: prints every command, runs none
#
# Needs gcloud, signed in, and its key in ssh-agent. POLL: seconds between two questions, 30.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=shared.sh
source "$(dirname "${BASH_SOURCE[0]}")/shared.sh"

pretended="" # the state of the machines in a dry run
answered=""  # gcloud has answered once: it is set up
outcome=finished

queued() { # queued VERB ARGUMENTS...
  run gcloud compute tpus queued-resources "$@" "--project=${flag[project]}" "--zone=${flag[zone]}"
}

machines() { # machines ssh|scp ARGUMENTS...: all of them at once
  run gcloud compute tpus tpu-vm "$@" "--project=${flag[project]}" "--zone=${flag[zone]}" --quiet \
    --worker=all
}

each() { # each COMMAND LINE; the exit code is that of a machine where it failed
  machines ssh "${flag[name]}" "--command=$1"
}

state() { # nothing where there is no such resource
  until queued list "--filter=name ~ /${flag[name]}\$" '--format=value(state.state)'; do
    [[ -n $answered ]] || return 1
    say "gcloud does not answer" # a laptop that slept: the machines work on
    sleep "$poll"
  done
  pretend "$pretended"
}

codes() { # a line a machine: its exit code, running or lost
  each 'cd ood_jax && launch/worker.sh code' && pretend 0
}

request() {
  local -a spot=()
  [[ -z ${flag[spot]-} ]] || spot=(--spot)
  queued create "${flag[name]}" "--node-id=${flag[name]}" "--accelerator-type=${flag[accelerator]}" \
    "--runtime-version=${flag[runtime]}" "${spot[@]}" "${extra[@]}" || return 1
  pretended=ACTIVE
}

create() {
  local now="" before
  while :; do
    before=$now
    now=$(state) || return 1
    answered=yes
    [[ $now == "$before" || -z $now ]] || say "${flag[name]} is $now"
    case $now in
      ACTIVE) return 0 ;;
      "") request || return 1 ;;
      SUSPENDED) delete || return 1 ;;
      FAILED)
        say "the request failed: gcloud compute tpus queued-resources describe ${flag[name]} says why"
        return 1
        ;;
      *) sleep "$poll" ;; # in the queue, or on its way out
    esac
  done
}

install() {
  local unpack='rm -rf ood_jax && mkdir ood_jax && tar xzf ood_jax.tgz -C ood_jax && cd ood_jax'
  pack || return 1
  machines scp "$scratch/code.tgz" "${flag[name]}:ood_jax.tgz" || return 1
  # A run under way keeps its code.
  each "[ \"\$(ood_jax/launch/worker.sh code 2>/dev/null)\" = running ] || { $unpack && launch/worker.sh install; }"
}

taken() { [[ $(state) != ACTIVE ]]; } # the machines, or being so

# follow_run: starts the run, follows it, sets `outcome` to finished, mistake, preempted or failed.
follow_run() {
  local now="" lost=0 code=0
  outcome=failed
  each "cd ood_jax && launch/worker.sh start $(quoted "${arguments[@]}")" || code=$?
  if ((code == 2)); then
    outcome=mistake
    return 0
  fi
  while :; do
    each 'cd ood_jax && launch/worker.sh follow' || true
    now=$(codes) || now=""
    case $now in
      *running*) ;; # the connection was lost, not the run
      "")
        sleep "$poll" # they are ACTIVE for a while after they were taken away
        if ((++lost == 3)) || taken; then break; fi
        ;;
      *) break ;;
    esac
  done
  judge "$now"
}

judge() { # judge CODES
  local all=" ${1//$'\n'/ } "
  if [[ $all =~ ^(\ 0)+\ $ ]]; then
    outcome=finished
  elif [[ $all == *" 143 "* ]] || taken; then
    outcome=preempted # the others may have failed because one was gone
  elif [[ $all == *" 2 "* ]]; then
    outcome=mistake
  fi
}

delete() {
  queued delete "${flag[name]}" --force --quiet || return 1
  pretended=""
}

all() {
  local failures=0 began=""
  while :; do
    outcome=failed
    create || break
    if install; then
      began=yes
      follow_run
    elif taken; then
      outcome=preempted
    fi
    case $outcome in
      finished | mistake) break ;;
      preempted) say "preempted: the same command again" ;;
      failed)
        failures=$((failures + 1))
        ((failures <= flag[retries])) || break
        say "failed: the same command again, $failures of ${flag[retries]}"
        ;;
    esac
    sleep "$poll"
  done
  [[ -z $began ]] || fetch || say "nothing was fetched: launch/tpu_pod.sh fetch tries again"
  [[ -z $answered || -z $(state) ]] || delete ||
    say "NOT DELETED, and it costs: launch/tpu_pod.sh delete tries again"
}

stopped() {
  say "no longer followed; what there is of ${flag[name]} goes on, and costs until it is deleted"
  exit "$1"
}

main() {
  parse 'create install run fetch delete all' \
    'name project zone accelerator runtime retries results' 'spot create-flag' "$@"
  flag[project]=${flag[project]-${CLOUDSDK_CORE_PROJECT-}}
  flag[zone]=${flag[zone]-${CLOUDSDK_COMPUTE_ZONE-}}
  need_name
  need_count retries 3
  [[ $action == fetch ]] || need project zone
  [[ $action != create && $action != all ]] || need accelerator runtime
  [[ $action != run && $action != fetch && $action != all ]] || need_workdir
  trap 'stopped 130' INT
  trap 'stopped 143' TERM
  case $action in
    create) create || outcome=failed ;;
    install) install || outcome=failed ;;
    run) follow_run ;;
    fetch) fetch || outcome=failed ;;
    delete) delete || outcome=failed ;;
    all) all ;;
  esac
  case $outcome in
    finished) ;;
    mistake) exit 2 ;;
    preempted) exit 143 ;;
    failed) exit 1 ;;
  esac
}

main "$@"
