#!/usr/bin/env bash
# Stage 1: next-token training on pairs of text and media. The same command resumes a stopped run.
#
#   scripts/stage1_pretrain.sh CONFIG.yaml OUT_DIR [--trainer KEY=VALUE ...]
#
# Environment: NPROC processes on this machine (default: the number of GPUs, else 1), NNODES, NODE_RANK, MASTER_ADDR
# and MASTER_PORT for several machines. Under Slurm these are read from the job; Slurm is never needed.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ $# -lt 2 ]; then
  sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
  exit 2
fi
python=${PYTHON:-$root/.venv/bin/python}
[ -x "$(command -v "$python")" ] || python=python3
config=$1 out=$2
shift 2

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
  exec "$python" -m anygpt train stage1 --config "$config" --out "$out" "$@"
fi
exec "$python" -m torch.distributed.run --nproc-per-node "$nproc" --nnodes "$nnodes" --node-rank "$node_rank" \
  --master-addr "${MASTER_ADDR:-127.0.0.1}" --master-port "${MASTER_PORT:-29500}" \
  -m anygpt train stage1 --config "$config" --out "$out" "$@"
