#!/usr/bin/env bash
# Train both stages on the embedded images. A stopped demo continues; a finished one prints its table again.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${PYTHON:=.venv/bin/python}"
started=$SECONDS
export AIM_HINTS=0 # the next command of each stage is a line of this script
aim() { "$PYTHON" -m aim_lightning "$@"; }

echo '[1/4] stage 1: a tokenizer learns to reconstruct 32x32 images from 8x8 codes'
aim fit --config experiments/demo_tokenizer.yaml
echo '[2/4] images to token shards'
aim tokenize --config experiments/demo_tokenizer.yaml
echo '[3/4] stage 2: AiM learns to generate codes for a class'
aim fit --config experiments/demo_aim.yaml
echo '[4/4] 2,000 samples against reference images'
table() { "$PYTHON" experiments/demo_table.py --num 2000; }
table 2>/dev/null || { aim validate --config experiments/demo_aim.yaml && table; }
echo "made in $((SECONDS - started)) s; next: make tensorboard, make app EXP=demo_aim, or make sample EXP=demo_aim ARGS='--classes \"sneaker,bag\"'"
