#!/usr/bin/env bash
# Train with PyTorch on CUDA devices (or CPUs) of one or several machines; `scripts/launch_torch.sh --help` explains.
set -euo pipefail

usage() {
  cat <<'HELP'
Usage: [NAME=value ...] scripts/launch_torch.sh --config FILE [--workdir DIR] [options of voken_torch.train]

Runs `torchrun ... -m voken_torch.train --device cuda` with all given options, one process per GPU. On several machines
start it on each of them with the same options and the same MASTER_ADDR, MASTER_PORT and NNODES, and its own NODE_RANK;
under Slurm, one task per machine, these are taken from Slurm. The work directory has to be on storage that all machines
see: the first process writes, all of them read to resume. `--set mesh.fsdp=N` splits weights, moments and averages over
N processes (FSDP2); mesh.fsdp 1 is data parallelism (DDP). For Ascend see scripts/launch_ascend.sh.

Where processes run
  NNODES                number of machines; default 1, under Slurm SLURM_NNODES
  NODE_RANK             number of this machine, from 0; needed where NNODES > 1; under Slurm SLURM_NODEID
  MASTER_ADDR           address of machine 0, as the others reach it; needed where NNODES > 1; under Slurm the first
                        host of the job
  MASTER_PORT           a free port on machine 0, the same on all machines; default 29500
  NPROC_PER_NODE        processes on this machine; default: as many as visible GPUs
  CUDA_VISIBLE_DEVICES  GPUs of this machine to use, for example 0,1,2,3; default all that nvidia-smi lists
  DEVICE                cuda (default) or cpu; a CPU needs NPROC_PER_NODE
  PYTHON                interpreter; default .venv/bin/python of this project where it exists, else python3

What the libraries read
  OMP_NUM_THREADS       CPU threads of one process; default: CPU cores / processes, at most 8
  NCCL_SOCKET_IFNAME    network interface of this machine that the others reach, where there are several: eth0
  NCCL_DEBUG            INFO: NCCL tells which transports it uses; WARN: only problems
  TORCH_NCCL_ASYNC_ERROR_HANDLING  1 (torch's default): a lost process ends the others after the timeout

  DRY_RUN=1             print the variables and the command instead of running it
HELP
}

# shellcheck source=scripts/launch_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/launch_common.sh"

visible_devices() {
  if [[ -n ${CUDA_VISIBLE_DEVICES:-} ]]; then
    tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c .
  elif command -v nvidia-smi >/dev/null; then
    nvidia-smi --list-gpus | grep -c . || true
  else
    echo 0
  fi
}

check_arguments "$@"
for argument in "$@"; do
  [[ $argument != --device && $argument != --device=* ]] || fail "--device is given by DEVICE here: leave it out"
done
DEVICE=${DEVICE:-cuda}
[[ $DEVICE == cuda || $DEVICE == cpu ]] || fail "DEVICE is '$DEVICE': expected cuda or cpu"
if [[ -n ${SLURM_NNODES:-} && -n ${SLURM_NODEID:-} ]]; then
  NNODES=${NNODES:-$SLURM_NNODES}
  NODE_RANK=${NODE_RANK:-$SLURM_NODEID}
  if [[ -z ${MASTER_ADDR:-} && -n ${SLURM_JOB_NODELIST:-} ]] && command -v scontrol >/dev/null; then
    MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
  fi
fi
find_rendezvous
if [[ $DEVICE == cpu ]]; then
  [[ -n ${NPROC_PER_NODE:-} ]] || fail "DEVICE is cpu but NPROC_PER_NODE is not set: say how many processes to start"
else
  NPROC_PER_NODE=${NPROC_PER_NODE:-$(visible_devices)}
fi
require_number NPROC_PER_NODE 0
((NPROC_PER_NODE > 0)) || fail "no GPU found: check nvidia-smi and CUDA_VISIBLE_DEVICES, or set NPROC_PER_NODE"

limit_threads "$NPROC_PER_NODE"
find_python
torchrun_command "$DEVICE" "$@"
run_or_print OMP_NUM_THREADS
