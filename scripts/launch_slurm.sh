#!/usr/bin/env bash
# Train on a Slurm cluster, in JAX or PyTorch; `scripts/launch_slurm.sh --help` explains.
set -euo pipefail

usage() {
  cat <<'HELP'
Usage: [NAME=value ...] scripts/launch_slurm.sh --config FILE --workdir DIR [options of the training command]

Submits itself by sbatch; inside an allocation (salloc, or another batch script) it runs the job at once.
JAX: srun starts one process per GPU, which find each other through Slurm's variables. PyTorch: srun starts one
scripts/launch_torch.sh per machine, and that one process per GPU. The project and the work directory have to be on
storage that all machines see.

A job that runs out of time or is preempted gets SIGTERM SIGNAL_SECONDS before: it writes a checkpoint and stops. The
same command continues; with REQUEUE=1 Slurm starts it again by itself.

What runs
  FRAMEWORK         jax (default) or torch
  NODES             machines; default 1, inside an allocation all of it
  GPUS_PER_NODE     GPUs of each machine; default 8
  CPUS_PER_GPU      CPU cores for each GPU, mostly for data workers; default 8
  PYTHON            interpreter; default .venv/bin/python of this project where it exists, else python3

What sbatch is told (only outside of an allocation)
  JOB_NAME          default voken
  PARTITION         --partition; default the cluster's
  ACCOUNT           --account; default none
  TIME_LIMIT        --time; default the partition's, for example 24:00:00
  SIGNAL_SECONDS    how long before the end SIGTERM comes; default 300
  REQUEUE           1: --requeue
  OUTPUT            file of the output, %j is the number of the job; default voken-%j.log
  SBATCH_EXTRA      further options of sbatch, separated by spaces: "--constraint=h100 --exclusive"

What the libraries read
  JAX_COORDINATOR_PORT  port of the first process, where the one that JAX derives from the job's number is not free
  XLA_FLAGS             flags of the compiler
  NCCL_SOCKET_IFNAME    network interface that the machines reach each other by, where there are several

  DRY_RUN=1         print the command instead of running it
HELP
}

# shellcheck source=scripts/launch_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/launch_common.sh"

check_arguments "$@"
FRAMEWORK=${FRAMEWORK:-jax}
[[ $FRAMEWORK == jax || $FRAMEWORK == torch ]] || fail "FRAMEWORK is '$FRAMEWORK': expected jax or torch"
NODES=${NODES:-${SLURM_NNODES:-1}}
GPUS_PER_NODE=${GPUS_PER_NODE:-8}
CPUS_PER_GPU=${CPUS_PER_GPU:-8}
SIGNAL_SECONDS=${SIGNAL_SECONDS:-300}
require_number NODES 1
require_number GPUS_PER_NODE 1
require_number CPUS_PER_GPU 1
require_number SIGNAL_SECONDS 1
find_python

if [[ -n ${SLURM_JOB_ID:-} ]]; then
  if [[ $FRAMEWORK == jax ]]; then
    command=(srun --nodes "$NODES" --ntasks-per-node "$GPUS_PER_NODE" --cpus-per-task "$CPUS_PER_GPU"
      --kill-on-bad-exit=1 "$PYTHON" -m voken_jax.train "$@")
  else
    export PYTHON NPROC_PER_NODE=$GPUS_PER_NODE
    command=(srun --nodes "$NODES" --ntasks-per-node 1 --cpus-per-task "$((CPUS_PER_GPU * GPUS_PER_NODE))"
      --kill-on-bad-exit=1 "$project/scripts/launch_torch.sh" "$@")
  fi
  cd "$project"
  run_or_print
fi

command -v sbatch >/dev/null || [[ -n ${DRY_RUN:-} ]] ||
  fail "sbatch is not there: run this on a login node of a Slurm cluster, or inside an allocation"
tasks=$GPUS_PER_NODE cpus=$CPUS_PER_GPU
if [[ $FRAMEWORK == torch ]]; then
  tasks=1 cpus=$((CPUS_PER_GPU * GPUS_PER_NODE))
fi
export FRAMEWORK NODES GPUS_PER_NODE CPUS_PER_GPU PYTHON
command=(sbatch --job-name "${JOB_NAME:-voken}" --nodes "$NODES" --ntasks-per-node "$tasks" --cpus-per-task "$cpus"
  --gpus-per-node "$GPUS_PER_NODE" --signal "TERM@$SIGNAL_SECONDS" --output "${OUTPUT:-voken-%j.log}"
  --chdir "$project" --export ALL)
[[ -z ${PARTITION:-} ]] || command+=(--partition "$PARTITION")
[[ -z ${ACCOUNT:-} ]] || command+=(--account "$ACCOUNT")
[[ -z ${TIME_LIMIT:-} ]] || command+=(--time "$TIME_LIMIT")
[[ ${REQUEUE:-} != 1 ]] || command+=(--requeue)
if [[ -n ${SBATCH_EXTRA:-} ]]; then
  read -r -a extra <<<"$SBATCH_EXTRA"
  command+=("${extra[@]}")
fi
# sbatch copies the script that it is given, so the copy has to be told where this one lies.
command+=(--wrap "exec $(quoted "$project/scripts/launch_slurm.sh" "$@")")
run_or_print FRAMEWORK NODES GPUS_PER_NODE
