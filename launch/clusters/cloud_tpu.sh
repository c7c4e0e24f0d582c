#!/usr/bin/env bash
# Trains on all hosts of a Cloud TPU slice:
#
#   launch/clusters/cloud_tpu.sh NAME ZONE --config=configs/NAME.py --workdir=/mnt/runs/NAME [...]
#
# with the flags of launch/train.py. The repository lies in ~/moe_jax on every host, installed as
# docs/launching.md says, and the workdir is on a disk that all of them share.
set -euo pipefail

usage() { sed -n '2,7s/^# \{0,1\}//p' "$0"; }
if [ "${1:-}" = --help ]; then usage; exit 0; fi
if [ $# -lt 3 ]; then usage >&2; exit 2; fi

name=$1 zone=$2
shift 2
printf -v flags ' %q' "$@"
exec gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all \
  --command="cd ~/moe_jax && .venv/bin/python launch/train.py --coordinator=auto$flags"
