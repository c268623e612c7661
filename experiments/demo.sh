#!/usr/bin/env bash
# The main job on the embedded images. Stopped at any point and started again, it continues.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${PYTHON:=.venv/bin/python}"
started=$SECONDS
aim() { "$PYTHON" -m aim_lightning "$@"; }

echo '[1/4] stage 1: a tokenizer learns to reconstruct 32x32 images from 8x8 codes'
aim fit --config experiments/demo_tokenizer.yaml
echo '[2/4] images to token shards'
aim tokenize --config experiments/demo_tokenizer.yaml --views center_flip
echo '[3/4] stage 2: AiM learns to draw codes, given a class'
aim fit --config experiments/demo_aim.yaml
echo '[4/4] 2,000 samples against real images'
aim validate --config experiments/demo_aim.yaml
"$PYTHON" experiments/demo_table.py
echo "made in $((SECONDS - started)) s; next: make tensorboard, or make sample EXP=demo_aim ARGS='--classes \"sneaker,bag\"'"
