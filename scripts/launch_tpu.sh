#!/usr/bin/env bash
# Train in JAX on all hosts of a Cloud TPU; `scripts/launch_tpu.sh --help` explains.
set -euo pipefail

usage() {
  cat <<'HELP'
Usage: TPU_NAME=... [NAME=value ...] scripts/launch_tpu.sh --config FILE --workdir DIR [options of voken_jax.train]

Runs `python -m voken_jax.train --distributed` with all given options on every host of a TPU slice, by ssh through
gcloud. The hosts find each other through the TPU's metadata. The project has to lie at REMOTE_DIR on every host, with
its environment (`pip install -e '.[tpu]'`), and --workdir has to be on storage that all hosts see (a mounted disk or
bucket). On a host of the TPU itself, TPU_NAME=local starts only the process there.

  TPU_NAME      name of the TPU, or local; needed
  ZONE          its zone; default gcloud's configured one
  PROJECT       the Google Cloud project; default gcloud's configured one
  REMOTE_DIR    where the project lies on the hosts; default ~/voken
  REMOTE_PYTHON interpreter there; default .venv/bin/python in REMOTE_DIR
  LOG_DIR       on the hosts: each writes voken-HOST.log there; default REMOTE_DIR/logs
  XLA_FLAGS, LIBTPU_INIT_ARGS   passed on to the hosts where they are set

The command ends when the training ends on all hosts; a lost host ends it on the others (--lost-after SECONDS). On
spot TPUs a preemption notice (SIGTERM) writes a checkpoint first; the same command continues.

  DRY_RUN=1     print the command instead of running it
HELP
}

# shellcheck source=scripts/launch_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/launch_common.sh"

check_arguments "$@"
[[ -n ${TPU_NAME:-} ]] || fail "TPU_NAME is not set: name a TPU (gcloud compute tpus tpu-vm list), or local"
if [[ $TPU_NAME == local ]]; then
  find_python
  cd "$project"
  command=("$PYTHON" -m voken_jax.train --distributed "$@")
  run_or_print
fi

remote_path() { # a path on the hosts, where a leading ~ is their home; everything else of it is taken as it is
  # shellcheck disable=SC2016,SC2088 # HOME and ~ are those of the hosts
  case $1 in
    '~') printf '"$HOME"' ;;
    '~/'*) printf '"$HOME"/%s' "$(quoted "${1#'~/'}")" ;;
    -*) quoted "./$1" ;;
    *) quoted "$1" ;;
  esac
}

[[ $TPU_NAME =~ ^([A-Za-z0-9._][A-Za-z0-9._-]*@)?[A-Za-z0-9][A-Za-z0-9-]*$ ]] ||
  fail "TPU_NAME is '$TPU_NAME': expected letters, digits and hyphens, as gcloud lists it"
# shellcheck disable=SC2088 # of the hosts
REMOTE_DIR=${REMOTE_DIR:-'~/voken'}
REMOTE_PYTHON=${REMOTE_PYTHON:-.venv/bin/python}
LOG_DIR=${LOG_DIR:-logs}
remote="cd $(remote_path "$REMOTE_DIR") && mkdir -p $(remote_path "$LOG_DIR") && set -o pipefail && "
for name in XLA_FLAGS LIBTPU_INIT_ARGS; do
  [[ -z ${!name:-} ]] || remote+="$name=$(quoted "${!name}") "
done
remote+="$(remote_path "$REMOTE_PYTHON") -m voken_jax.train --distributed $(quoted "$@") 2>&1"
remote+=" | tee $(remote_path "$LOG_DIR/voken-")\"\$(hostname)\".log"
command=(gcloud compute tpus tpu-vm ssh "$TPU_NAME" --worker all --command "$remote")
[[ -z ${ZONE:-} ]] || command+=(--zone "$ZONE")
[[ -z ${PROJECT:-} ]] || command+=(--project "$PROJECT")
command -v gcloud >/dev/null || [[ -n ${DRY_RUN:-} ]] || fail "gcloud is not there: install the Google Cloud CLI"
run_or_print
