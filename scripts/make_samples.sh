#!/usr/bin/env bash
# Tokenizes the samples in data/ with the shipped tokenizers: bash scripts/make_samples.sh
# MEDIA=1 makes pictures, sounds and conversations anew, which needs the world's apt packages; ANYGPT is the command.
set -euo pipefail
cd "$(dirname "$0")/.."

anygpt=${ANYGPT:-.venv/bin/anygpt}

make_media() { # modality, how many, seed
    rm -rf "data/pretrain/$1/media"
    "$anygpt" world "$1" --raw --out "data/pretrain/$1" --count "$2" --split heldout --seed "$3"
}

if [ -n "${MEDIA:-}" ]; then
    make_media image 8 3
    make_media speech 6 2
    make_media music 6 1
fi
for modality in image speech music; do
    rm -f "data/pretrain/$modality/sample.jsonl"*
    "$anygpt" tokenize "data/pretrain/$modality/manifest.jsonl" --out "data/pretrain/$modality/sample.jsonl"
done
rm -f data/instruction/llava.jsonl*
"$anygpt" convert llava data/instruction/llava.json --media data/pretrain/image/media --out data/instruction/llava.jsonl
if [ -n "${MEDIA:-}" ]; then
    rm -f data/instruction/world.jsonl*
    "$anygpt" synth --count 30 --split heldout --seed 1 --out data/instruction/world.jsonl
fi
