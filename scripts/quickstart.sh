#!/usr/bin/env bash
# Installs into .venv and answers all seven prompt forms with the shipped model: bash scripts/quickstart.sh
# VENV chooses another folder, OUTPUT_DIR where the files go; for the rest see scripts/make_venv.sh.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=${VENV:-.venv}
output_dir=${OUTPUT_DIR:-infer_output/quickstart}

first() { # the first bundled file that fits the pattern
    local file
    for file in $1; do
        [ ! -e "$file" ] || { echo "$file"; return; }
    done
    echo "$1: no such file; the checkout is incomplete" >&2
    exit 1
}
image=$(first "data/pretrain/image/media/*.jpg")
speech=$(first "data/pretrain/speech/media/*.wav")
music=$(first "data/pretrain/music/media/*.wav")

bash scripts/make_venv.sh "$venv"

echo "== Answering all seven prompt forms (files go to $output_dir)"
start=$SECONDS
"$venv/bin/anygpt" base --seed 1 --output-dir "$output_dir" \
    --prompt "text|image|a large red apple on a white background" \
    --prompt "image|text|$image" \
    --prompt "text|speech|the small dog is near the river" \
    --prompt "text|speech|the small dog is near the river|$speech" \
    --prompt "speech|text|$speech" \
    --prompt "text|music|a slow sad piano piece in a minor key without drums" \
    --prompt "music|text|$music"
echo "== Done in $((SECONDS - start)) s; for more: $venv/bin/anygpt base --help"
