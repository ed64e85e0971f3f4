#!/usr/bin/env bash
# Train on Ascend NPUs of one or several machines; `scripts/launch_ascend.sh --help` explains.
set -euo pipefail

usage() {
  cat <<'HELP'
Usage: [NAME=value ...] scripts/launch_ascend.sh --config FILE [--workdir DIR] [options of voken_torch.train]

Runs `torchrun ... -m voken_torch.train --device npu` with all given options, one process per NPU. On several machines
start it on each of them with the same options and the same MASTER_ADDR, MASTER_PORT and NNODES, and its own NODE_RANK.
The work directory has to be on storage that all machines see: the first process writes, all of them read to resume.

Where processes run
  NNODES                     number of machines; default 1
  NODE_RANK                  number of this machine, from 0; needed where NNODES > 1
  MASTER_ADDR                address of machine 0, as the others reach it; needed where NNODES > 1
  MASTER_PORT                a free port on machine 0, the same on all machines; default 29500
  NPROC_PER_NODE             processes on this machine; default: as many as visible NPUs
  ASCEND_RT_VISIBLE_DEVICES  NPUs of this machine to use, for example 0,1,2,3; default all that npu-smi lists
  PYTHON                     interpreter; default .venv/bin/python of this project where it exists, else python3

What the libraries read
  CANN_SET_ENV               CANN's set_env.sh, sourced before the start where CANN's variables are not set yet;
                             default /usr/local/Ascend/ascend-toolkit/set_env.sh
  OMP_NUM_THREADS            CPU threads of one process; default: CPU cores / processes, at most 8
  HCCL_CONNECT_TIMEOUT       seconds in which all NPUs have to find each other, 120 to 7200; default here 600, as the
                             first step waits for the slowest machine to read its data and to compile its kernels
  HCCL_EXEC_TIMEOUT          seconds a collective waits for the slowest process; HCCL's default is 1836. Raise it where
                             a validation, which ends in a collective, may differ by more between processes
  HCCL_SOCKET_IFNAME         network interface of this machine that the others reach, where there are several: eth0
  HCCL_IF_BASE_PORT          first of 16 ports that HCCL listens on; HCCL's default is 60000. Reserve them with
                             sysctl net.ipv4.ip_local_reserved_ports=60000-60015
  HCCL_DETERMINISTIC         true: collectives add in the same order every time, more slowly; --deterministic sets it

  DRY_RUN=1                  print the variables and the command instead of running it
HELP
}

# shellcheck source=scripts/launch_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/launch_common.sh"

visible_devices() {
  if [[ -n ${ASCEND_RT_VISIBLE_DEVICES:-} ]]; then
    tr ',' '\n' <<<"$ASCEND_RT_VISIBLE_DEVICES" | grep -c .
  elif command -v npu-smi >/dev/null; then
    npu-smi info -l | awk -F: '/Total Count/ {print $2 + 0}'
  else
    echo 0
  fi
}

check_arguments "$@"
for argument in "$@"; do
  [[ $argument != --device && $argument != --device=* ]] || fail "--device is npu here: leave it out"
done
find_rendezvous

if [[ -z ${ASCEND_TOOLKIT_HOME:-}${ASCEND_HOME_PATH:-} ]]; then
  set_env=${CANN_SET_ENV:-/usr/local/Ascend/ascend-toolkit/set_env.sh}
  if [[ -r $set_env ]]; then
    set +u # CANN's script reads variables that need not be set
    # shellcheck source=/dev/null
    source "$set_env"
    set -u
  elif [[ -z ${DRY_RUN:-} ]]; then
    fail "CANN's variables are not set and $set_env is not there: install CANN, or name its script in CANN_SET_ENV"
  fi
fi

NPROC_PER_NODE=${NPROC_PER_NODE:-$(visible_devices)}
require_number NPROC_PER_NODE 0
((NPROC_PER_NODE > 0)) || fail "no NPU found: check npu-smi info and ASCEND_RT_VISIBLE_DEVICES, or set NPROC_PER_NODE"

limit_threads "$NPROC_PER_NODE"
export HCCL_CONNECT_TIMEOUT=${HCCL_CONNECT_TIMEOUT:-600}
find_python
torchrun_command npu "$@"
run_or_print OMP_NUM_THREADS HCCL_CONNECT_TIMEOUT
