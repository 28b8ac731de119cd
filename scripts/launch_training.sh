#!/usr/bin/env bash
# What the training scripts share: one stage, in as many processes as there are GPUs or NPROC says.
#
#   scripts/launch_training.sh STAGE CONFIG.yaml OUT_DIR [--trainer KEY=VALUE ...]
#
# scripts/stage1_pretrain.sh and scripts/stage2_sft.sh call it, and explain the environment variables.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ $# -lt 3 ]; then
  sed -n '2,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
  exit 2
fi
python=${PYTHON:-$root/.venv/bin/python}
[ -x "$(command -v "$python")" ] || python=python3
stage=$1 config=$2 out=$3
shift 3

gpus=$(nvidia-smi --list-gpus 2>/dev/null | wc -l || true)
nproc=${NPROC:-$((gpus > 0 ? gpus : 1))}
nnodes=${NNODES:-${SLURM_NNODES:-1}}
node_rank=${NODE_RANK:-${SLURM_NODEID:-0}}
if [ -z "${MASTER_ADDR:-}" ] && [ -n "${SLURM_JOB_NODELIST:-}" ]; then
  MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
fi
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
# One thread a process unless told otherwise: several processes with several threads each crawl on a busy CPU.
[ "$nproc" -gt 1 ] && export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
if [ "$nproc" -eq 1 ] && [ "$nnodes" -eq 1 ]; then
  exec "$python" -m anygpt train "$stage" --config "$config" --out "$out" "$@"
fi
exec "$python" -m torch.distributed.run --nproc-per-node "$nproc" --nnodes "$nnodes" --node-rank "$node_rank" \
  --master-addr "${MASTER_ADDR:-127.0.0.1}" --master-port "${MASTER_PORT:-29500}" \
  -m anygpt train "$stage" --config "$config" --out "$out" "$@"
