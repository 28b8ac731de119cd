#!/usr/bin/env bash
# Has the conversation of docs/chat_script.txt with the chat model and writes docs/chat.md, its media in docs/chat/.
# Flags of `anygpt chat` pass through, such as --model-name-or-path; PYTHON is the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-.venv/bin/python}
output_dir=$(mktemp -d)
trap 'rm -rf "$output_dir"' EXIT
# One thread: sums in another order can give another id, and another answer.
OMP_NUM_THREADS=1 "$python" -m anygpt chat --script docs/chat_script.txt --page docs/chat.md --seed 1 \
    --output-dir "$output_dir" "$@"
