#!/usr/bin/env bash
# Stage 2: instruction tuning on conversations, all weights or LoRA. The same command resumes a stopped run.
#
#   scripts/stage2_sft.sh CONFIG.yaml OUT_DIR [--trainer KEY=VALUE ...]
#
# Environment: NPROC processes on this machine (default: the number of GPUs, else 1), NNODES, NODE_RANK, MASTER_ADDR
# and MASTER_PORT for several machines. Under Slurm these are read from the job; Slurm is never needed.
set -euo pipefail
if [ $# -lt 2 ]; then
  sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
  exit 2
fi
exec bash "$(dirname "${BASH_SOURCE[0]}")/launch_training.sh" stage2 "$@"
