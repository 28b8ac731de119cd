#!/usr/bin/env bash
# Make the shipped small models again, from nothing: tokenizers, data, base and chat model, evaluation.
#
#   scripts/train_mini.sh [STEP ...]     all steps, or some of:
#       tokenizers data stage1 install stage2 install-chat eval
#
# Every step resumes where it stopped. It needs the apt packages espeak-ng, libfluidsynth3, timgm6mb-soundfont and
# fonts-noto-color-emoji. Environment: OUT (default runs), NPROC processes for the language models (default
# 2), IMAGES, UTTERANCES, CLIPS, CONVERSATIONS: how many of each to make.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
python=${PYTHON:-$root/.venv/bin/python}
[ -x "$(command -v "$python")" ] || python=python3
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
out=${OUT:-runs}

# install_tokenizer RUN NAME: what a training exported becomes the shipped tokenizer NAME; its card stays.
install_tokenizer() {
  mkdir -p "tokenizers/$2"
  cp "$out/$1/export/"* "tokenizers/$2/"
  cp "config/tokenizers/$2.yaml" "tokenizers/$2/recipe.yaml"
}

train_tokenizers() {
  for pair in seed:seed-mini speechtokenizer:speechtokenizer-mini encodec:encodec-mini soundstorm:soundstorm-mini; do
    local method=${pair%%:*} name=${pair#*:}
    "$python" -m anygpt train-tokenizer "$method" --config "config/tokenizers/$name.yaml" --out "$out/$name"
    install_tokenizer "$name" "$name"  # the next ones may need it: SoundStorm learns on the speech tokenizer's codes
  done
  "$python" - tokenizers/speechtokenizer-mini/config.json <<'PYTHON'
import json, pathlib, sys
path = pathlib.Path(sys.argv[1])
path.write_text(json.dumps(json.loads(path.read_text()) | {"soundstorm": "../soundstorm-mini"}, indent=2) + "\n")
PYTHON
}

make_data() {
  "$python" -m anygpt world text --out "$out/mini" --count 1024
  "$python" -m anygpt world image --out "$out/mini/data" --count "${IMAGES:-100000}"
  "$python" -m anygpt world speech --out "$out/mini/data" --count "${UTTERANCES:-114000}"
  "$python" -m anygpt world music --out "$out/mini/data" --count "${CLIPS:-12000}"
  local talks=${CONVERSATIONS:-185000}
  make_talks() { "$python" -m anygpt synth --out "$out/mini/data/$1.jsonl" --count $((talks * $2 / 185)) "${@:3}"; }
  make_talks chat 20
  make_talks chat_pictures 80 --seed 1 --scenarios draw,draw-and-change,draw-and-remember,change-a-picture,describe-a-picture,questions-about-a-picture,two-pictures,put-together
  make_talks chat_spoken 30 --seed 2 --scenarios say,answer-aloud,say-what-you-see,write-down,spoken-facts,spoken-small-talk,spoken-memory,spoken-draw,spoken-change,spoken-question,picture-and-speech
  make_talks chat_words 20 --seed 3 --scenarios facts,small-talk,remember-me,what-did-i-ask
  make_talks chat_mixed 10 --seed 4 --scenarios mixed
  make_talks chat_music 4 --seed 5 --scenarios picture-and-music,play,play-and-change,change-a-clip,describe-a-clip,say-what-plays,play-the-picture,draw-what-plays
  make_talks chat_begin 6 --seed 6 --scenarios picture-and-music,play,play-the-picture,play-the-background,spoken-play
  make_talks chat_shown 13 --seed 7 --scenarios change-a-picture
  make_talks chat_pairs 16 --seed 9 --scenarios rearrange-a-picture
  make_talks chat_both 2 --seed 8 --scenarios picture-and-music
}

train_stage1() {
  NPROC=${NPROC:-2} PYTHON=$python scripts/stage1_pretrain.sh config/stage1-mini.yaml "$out/mini/stage1"
}

# install_model STAGE NAME: what a stage exported becomes the shipped model NAME; its card stays.
install_model() {
  mkdir -p "models/$2"
  for file in config.json generation_config.json model.safetensors tokenizer.model tokenizer_config.json \
    special_tokens_map.json added_tokens.json anygpt.json; do
    cp "$out/mini/$1/model/$file" "models/$2/"
  done
  cp "config/$1-mini.yaml" "models/$2/recipe.yaml"
  cp "$out/mini/$1/curves.png" "$out/mini/$1/log.json" "models/$2/"
}

train_stage2() {
  NPROC=${NPROC:-2} PYTHON=$python scripts/stage2_sft.sh config/stage2-mini.yaml "$out/mini/stage2"
}

for step in "${@:-tokenizers data stage1 install stage2 install-chat eval}"; do
  for name in $step; do
    case $name in
      tokenizers) train_tokenizers ;;
      data) make_data ;;
      stage1) train_stage1 ;;
      install) install_model stage1 anygpt-mini-base ;;
      stage2) train_stage2 ;;
      install-chat) install_model stage2 anygpt-mini-chat ;;
      eval)
        "$python" -m anygpt eval --train-judges
        "$python" -m anygpt eval --out "$out/mini/eval"
        "$python" -m anygpt eval --model-name-or-path models/anygpt-mini-chat --tasks chat,base --out "$out/mini/eval-chat"
        ;;
      *) sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2 ;;
    esac
  done
done
