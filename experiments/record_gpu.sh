#!/usr/bin/env bash
# Measures on a GPU what experiments/ and benchmarks/ record of one, part by part; a part that was cut continues.
#   bash experiments/record_gpu.sh PART …    parts, in minutes on one H100 (* estimated):
#     tests (7)  sampling (5 *)  tokenizer (6 to 8)  tokenizing (8 *)  evaluate (10)  metrics (6 *)  interruptions (6 *)
#     backends (12 *)  forms (2 *)  pixels (2 *)  quality (5 *, after evaluate)  emoji (5 *, after make data-emoji)
#   PYTHON       interpreter [.venv/bin/python]
#   OUT          results, logs and tables go there [benchmarks/results, and experiments/ for images and scores]
#   WORK         runs and shards [runs]; SOURCE: IDX files of Fashion-MNIST [Debian's]
#   AIM_COMMIT   the commit, where git is missing or another tree's
#   DEVICES      GPUs of the part interruptions [1]; NUM: images of the part evaluate [10000]; ACCELERATOR [gpu]
set -euo pipefail
cd "$(dirname "$0")/.."
: "${PYTHON:=.venv/bin/python}" "${WORK:=runs}" "${DEVICES:=1}" "${NUM:=10000}" "${ACCELERATOR:=gpu}"
: "${OUT:=benchmarks/results}"
mkdir -p "$OUT"
export PYTHON BENCH_OUT=$OUT PYTHONPATH="${PYTHONPATH:+$PYTHONPATH:}." PYTHONUNBUFFERED=1
device=(--runs_root "$WORK" --trainer.accelerator "$ACCELERATOR" --trainer.devices 1)
aim() { "$PYTHON" -m aim_lightning "$@"; }

tests() { PYTHONPATH="$PYTHONPATH:tests" "$PYTHON" -m pytest -m gpu -rP -n 4 --dist worksteal tests/gpu | tee "$OUT/gpu_tests.txt"; }
sampling() { "$PYTHON" benchmarks/sampling.py; }
forms() { "$PYTHON" benchmarks/forms.py; }
pixels() { "$PYTHON" benchmarks/pixels.py --seconds 300; }
quality() { "$PYTHON" benchmarks/quality.py --run "$WORK/fashion_mnist_aim/main"; }
backends() { "$PYTHON" benchmarks/training.py --models AiM-B,AiM-L,AiM-XL,AiM-1B --batches 64,128,256; }
metrics() { "$PYTHON" benchmarks/evaluate.py; }
interruptions() { "$PYTHON" benchmarks/interruptions.py --devices "$DEVICES"; }
tokenizer() { RUNS=$WORK REPORT=$OUT/fashion_mnist_tokenizer bash experiments/fashion_mnist_tokenizer/run.sh; }

tokenizing() { # random VQ-16 weights, then those of the part tokenizer
  "$PYTHON" benchmarks/tokenizing.py --batch_sizes 64,256 --compiled 256
  "$PYTHON" benchmarks/tokenizing.py --weights "$WORK/fashion_mnist_tokenizer/adversarial"
}

evaluate() { # a stage 2 on the codes of the part tokenizer: 10,000 samples, a sweep of guidance
  local two=(--config experiments/fashion_mnist_aim.yaml "${device[@]}") grid='cfg_scale=1,1.5,2,3,5 top_k=0,100'
  aim tokenize --config experiments/fashion_mnist_tokenizer.yaml --run adversarial "${device[@]}"
  aim fit "${two[@]}"
  aim evaluate "${two[@]}" --num "$NUM" --record "fashion_mnist_aim_$NUM"
  aim sweep "${two[@]}" --num "$NUM" --grid "$grid" --record fashion_mnist_aim_guidance
  if [ "$OUT" != benchmarks/results ]; then cp -r experiments/results experiments/sweeps "$OUT"; fi
}

emoji() { # both stages in colour; samples of the checkpoint with the lowest val/loss and of the last one
  local one=(--config experiments/emoji_tokenizer.yaml "${device[@]}") two=(--config experiments/emoji_aim.yaml "${device[@]}")
  local stage1=$WORK/emoji_tokenizer/main stage2=$WORK/emoji_aim/main out=$OUT checkpoints name
  if [ "$OUT" = benchmarks/results ]; then out=experiments/emoji; fi
  mkdir -p "$out"
  aim fit "${one[@]}"
  aim validate "${one[@]}"
  aim tokenize "${one[@]}"
  aim fit "${two[@]}"
  checkpoints=("$stage2"/checkpoints/step=*.ckpt) # the best and the last one
  for name in best last; do
    if [ "$name" = last ]; then checkpoints=("${checkpoints[-1]}"); fi
    aim evaluate "${two[@]}" --checkpoint "${checkpoints[0]}" --labels data/emoji/labels.txt --keep_images false \
      --nearest 12 --out "$WORK/emoji_scores/$name" --record "emoji_aim_$name"
    cp "$WORK/emoji_scores/$name"/*/nearest.png "$out/nearest_$name.png"
  done
  cp "$stage1/samples/reconstructions.png" "$out"
  cp "$stage2/samples/grid.png" "$out/samples.png"
  cp "$stage1/results.json" "$out/tokenizer.json"
  if [ "$OUT" != benchmarks/results ]; then cp experiments/results/emoji_aim_*.json "$OUT"; fi
}

[ $# -gt 0 ] || { sed -n '2,10p' "$0" | cut -c3-; exit 2; }
for part in "$@"; do
  case $part in
    tests | sampling | tokenizer | tokenizing | emoji | evaluate | metrics | interruptions | backends | forms | pixels | quality) echo "== $part" && $part ;;
    *) echo "error: there is no part $part; bash experiments/record_gpu.sh lists them" >&2 && exit 2 ;;
  esac
done
