# What the launch scripts share; they source it, with $0 their own path and `usage` defined. Not for running.
# shellcheck shell=bash

project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

fail() {
  echo "error: $*" >&2
  echo "see: scripts/$(basename "$0") --help" >&2
  exit 2
}

require_number() { # name, least value
  if ! [[ ${!1} =~ ^[0-9]{1,9}$ ]] || ((10#${!1} < $2)); then
    fail "$1 is '${!1}': expected a whole number from $2"
  fi
}

quoted() { # words; prints them so that every POSIX shell reads them as they are, whatever bytes they hold
  # printf %q writes what bash alone understands: Slurm and TPU hosts may give it to dash, where it would be code.
  local LC_ALL=C word between='' escaped="'\\''"
  for word in "$@"; do
    if [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]]; then
      printf '%s%s' "$between" "$word"
    else
      printf "%s'%s'" "$between" "${word//"'"/"$escaped"}"
    fi
    between=' '
  done
}

check_arguments() { # the arguments of the script; --help ends it
  local argument has_config=
  for argument in "$@"; do
    case $argument in
      -h | --help) usage && exit 0 ;;
      --config | --config=*) has_config=yes ;;
    esac
  done
  [[ -n $has_config ]] || fail "--config is missing: name a YAML file, for example configs/quickstart_lfq.yaml"
}

find_rendezvous() { # sets NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT where they are not set, and checks them
  NNODES=${NNODES:-1}
  require_number NNODES 1
  if ((NNODES > 1)); then
    [[ -n ${MASTER_ADDR:-} ]] || fail "NNODES is $NNODES but MASTER_ADDR is not set: give the address of machine 0"
    [[ -n ${NODE_RANK:-} ]] || fail "NNODES is $NNODES but NODE_RANK is not set: number the machines from 0"
  fi
  NODE_RANK=${NODE_RANK:-0}
  MASTER_ADDR=${MASTER_ADDR:-127.0.0.1}
  MASTER_PORT=${MASTER_PORT:-29500}
  require_number NODE_RANK 0
  require_number MASTER_PORT 1
  ((NODE_RANK < NNODES)) || fail "NODE_RANK is $NODE_RANK but there are $NNODES machines: expected 0 to $((NNODES - 1))"
}

find_python() { # sets PYTHON where it is not set
  if [[ -z ${PYTHON:-} ]]; then
    PYTHON=$project/.venv/bin/python
    [[ -x $PYTHON ]] || PYTHON=python3
  fi
}

limit_threads() { # number of processes on this machine; sets OMP_NUM_THREADS where it is not set
  local threads=$(($(getconf _NPROCESSORS_ONLN) / $1))
  threads=$((threads < 1 ? 1 : threads > 8 ? 8 : threads))
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$threads}
}

torchrun_command() { # sets command to torchrun of voken_torch.train on the devices of this kind; arguments follow
  command=("$PYTHON" -m torch.distributed.run
    --nnodes "$NNODES" --node-rank "$NODE_RANK" --nproc-per-node "$NPROC_PER_NODE"
    --master-addr "$MASTER_ADDR" --master-port "$MASTER_PORT"
    -m voken_torch.train --device "$@")
}

# shellcheck disable=SC2120 # not all scripts have variables to print
run_or_print() { # names of exported variables; runs command, or prints both where DRY_RUN is set
  if [[ -n ${DRY_RUN:-} ]]; then
    local name
    for name in "$@"; do
      printf '%s\n' "$name=${!name}"
    done
    quoted "${command[@]}"
    echo
    exit 0
  fi
  exec "${command[@]}"
}
