#!/usr/bin/env bash
# Trains the tokenizer on full Fashion-MNIST with and without the adversarial loss, scores both, writes the report.
# Stopped at any point and started again, it continues. Further arguments are options of fit and validate.
#   PYTHON  interpreter [.venv/bin/python]      SOURCE  directory of the four IDX .gz files [Debian's]
#   RUNS    directory of all runs [runs]           REPORT  where the report goes [experiments/fashion_mnist_tokenizer]
#   AIM_COMMIT  commit in the results, without git
#   TOGETHER    1: both runs at the same time, on one card where there is one
set -euo pipefail
command="${TOGETHER:+TOGETHER=$TOGETHER }$0 $*"
cd "$(dirname "$0")/../.."
: "${PYTHON:=.venv/bin/python}" "${SOURCE:=/usr/share/datasets/fashion-mnist}" "${RUNS:=runs}"
: "${REPORT:=experiments/fashion_mnist_tokenizer}"
name=fashion_mnist_tokenizer
# Seconds that calls of fit took, stopped ones included (kill -9 of this script loses its last call's), a line each.
count_seconds() { [ ! -d "${directory:-}" ] || [ -z "${started:-}" ] || echo $((SECONDS - started)) >>"$directory/fit_seconds"; }
trap count_seconds EXIT
aim() { "$PYTHON" -m aim_lightning "$1" --config "experiments/$name.yaml" --runs_root "$RUNS" "${@:2}"; }

if [ ! -f data/fashion_mnist/val/manifest.json ]; then
  "$PYTHON" -m aim_lightning.data.images.fashion_mnist --source "$SOURCE" --out data/fashion_mnist
fi
train() { # RUN OPTION …
  local run=$1 options=(--run "$@")
  directory="$RUNS/$name/$run"
  if [ "$run" = plain ]; then options+=(--model.adversarial null); fi
  if [ "$(cat "$directory/fit_done" 2>/dev/null)" != "${options[*]}" ]; then
    started=$SECONDS
    aim fit "${options[@]}"
    count_seconds
    started=
    echo "${options[*]}" >"$directory/fit_done"
  fi
  aim validate "${options[@]}"
}
if [ "${TOGETHER:-0}" = 1 ]; then # each in a shell of its own, which counts its own seconds
  (trap count_seconds EXIT && train adversarial "$@") & first=$!
  (trap count_seconds EXIT && train plain "$@") & second=$!
  # An interrupt or the failure of one ends the other too: shells in the background hear no interrupt.
  trap 'pkill -TERM -P $first,$second || true' EXIT
  wait $first
  wait $second
else
  for run in adversarial plain; do train "$run" "$@"; done
fi
"$PYTHON" experiments/tokenizer_report.py "$RUNS/$name" adversarial plain --out "$REPORT" --command "$command"
