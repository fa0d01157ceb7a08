# shellcheck shell=bash
# What the launchers share: flags, a dry run, the code as one file. Sourced, never run.

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  echo "${0##*/} needs bash 4.4 or newer; this is ${BASH_VERSION}" >&2
  exit 2
fi
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck disable=SC2034
poll=${POLL:-30} # seconds between two questions to the cluster

declare -A flag=()
dry="" action="" workdir="" scratch=""
arguments=() # of ood_jax.main
extra=()     # --create-flag, as given

say() { echo "${0##*/}: $*" >&2; }

refuse() {
  say "$*"
  exit 2
}

usage() { # the comment at the head of the script
  sed -n '2,/^set /s/^# \{0,1\}//p' "$0" | grep -v '^set '
}

quoted() { # words as a shell reads them back
  local word
  local -a words=()
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]] || word=${word@Q}
    words+=("$word")
  done
  echo "${words[*]}"
}

begin_dry_run() {
  dry=yes
  exec 3>&1 # where it prints, also from within $(...)
}

run() { # run COMMAND...; a dry run prints it
  if [[ -n $dry ]]; then
    echo "+ $(quoted "$@")" >&3
  else
    "$@"
  fi
}

pretend() { # pretend ANSWER: what the command before it would have printed, in a dry run
  [[ -z $dry ]] || echo "$1"
}

# parse 'ACTIONS' 'VALUED FLAGS' 'SWITCHES' [--dry-run] ACTION [FLAGS] -- ARGUMENTS OF ood_jax.main
parse() {
  local actions=" $1 " valued=" $2 " switches=" $3 " name
  shift 3
  if [[ ${1-} == --dry-run ]]; then
    begin_dry_run
    shift
  fi
  case ${1-} in
    -h | --help)
      usage
      exit 0
      ;;
  esac
  action=${1-}
  [[ -n $action && $actions == *" $action "* ]] ||
    refuse "action '$action': choose one of$actions(--help tells more)"
  shift
  while (($#)) && [[ $1 != -- ]]; do
    name=${1#--}
    name=${name%%=*}
    if [[ $1 == --create-flag=* && $switches == *" create-flag "* ]]; then
      extra+=("${1#*=}")
    elif [[ $1 == "--$name="?* && $valued == *" $name "* ]]; then
      flag[$name]=${1#*=}
    elif [[ $1 == "--$name" && $switches == *" $name "* && $name != create-flag ]]; then
      flag[$name]=yes
    else
      refuse "flag '$1': choose of$valued(--NAME=VALUE) and$switches; behind -- are those of ood_jax.main"
    fi
    shift
  done
  (($# == 0)) || shift
  # shellcheck disable=SC2034
  arguments=("$@")
  workdir=$(workdir_in "$@")
}

workdir_in() { # workdir_in ARGUMENTS OF ood_jax.main...: the last one; nothing where there is none
  local word previous="" found=""
  for word in "$@"; do
    [[ $word != --workdir=* ]] || found=${word#*=}
    [[ $previous != --workdir ]] || found=$word
    previous=$word
  done
  echo "${found%/}"
}

need() { # need FLAG...
  local name
  for name in "$@"; do
    [[ -n ${flag[$name]-} ]] || refuse "--$name=... is missing (--help tells what it is)"
  done
}

need_name() { # it becomes part of host names
  need name
  [[ ${flag[name]} =~ ^[a-z][-a-z0-9]{0,38}[a-z0-9]$ ]] ||
    refuse "--name=${flag[name]}: 2 to 40 lower-case letters, digits and -, beginning with a letter"
}

need_count() { # need_count FLAG DEFAULT
  flag[$1]=${flag[$1]-$2}
  [[ ${flag[$1]} =~ ^[0-9]{1,4}$ ]] || refuse "--$1=${flag[$1]}: a whole number, 0 to 9999"
}

need_workdir() {
  [[ $workdir == gs://?*/?* ]] ||
    refuse "--workdir=$workdir after --: it must be gs://BUCKET/FOLDER, which outlives the machines"
}

# pack: $scratch/code.tgz, the working tree with its edited and new files, less what git ignores.
pack() {
  local tree
  git -C "$root" rev-parse --git-dir >/dev/null 2>&1 ||
    refuse "$root is no git checkout: the code that is sent is what git would commit there"
  open_scratch
  local -a git=(env "GIT_INDEX_FILE=$scratch/index" git -C "$root")
  run "${git[@]}" read-tree HEAD || return 1
  run "${git[@]}" add --all || return 1
  tree=$(run "${git[@]}" write-tree && pretend TREE) || return 1
  run git -C "$root" archive --format=tar.gz "--output=$scratch/code.tgz" "$tree" -- \
    . ':(exclude)tests' ':(exclude)benchmarks'
}

open_scratch() {
  [[ -z $scratch ]] || return 0
  if [[ -n $dry ]]; then
    scratch=SCRATCH
  else
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
  fi
}

# fetch: the workdir less checkpoints and features, which further scoring reads where they are.
fetch() {
  local to=${flag[results]-runs/${flag[name]}}
  run mkdir -p "$to"
  run gcloud storage rsync --recursive '--exclude=(.*/)?(checkpoints|features)/.*' \
    "$workdir" "$to" || return 1
  say "results and logs: $to"
}
