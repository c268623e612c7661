#!/usr/bin/env bash
# Train both stages on the embedded images; a stopped demo continues where it was.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${PYTHON:=.venv/bin/python}"
started=$SECONDS
aim() { "$PYTHON" -m aim_lightning "$@"; }

echo '[1/4] stage 1: a tokenizer learns to reconstruct 32x32 images from 8x8 codes'
aim fit --config experiments/demo_tokenizer.yaml
echo '[2/4] images to token shards'
aim tokenize --config experiments/demo_tokenizer.yaml
echo '[3/4] stage 2: AiM learns to generate codes for a class'
aim fit --config experiments/demo_aim.yaml
echo '[4/4] 2,000 samples against reference images'
aim validate --config experiments/demo_aim.yaml
"$PYTHON" experiments/demo_table.py
echo "made in $((SECONDS - started)) s; next: make tensorboard, or make sample EXP=demo_aim ARGS='--classes \"sneaker,bag\"'"
