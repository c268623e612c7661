#!/usr/bin/env bash
# Trains the tokenizer on full Fashion-MNIST with and without the adversarial loss, scores both, writes the report.
# Stopped at any point and started again, it continues. Further arguments are options of fit and validate.
#   PYTHON  interpreter [.venv/bin/python]      SOURCE  folder of the four IDX .gz files [Debian's]
#   RUNS    folder of all runs [runs]           REPORT  where the report goes [experiments/fashion_mnist_tokenizer]
#   COMMIT  for the report, where there is no git
set -euo pipefail
command="$0 $*"
cd "$(dirname "$0")/../.."
: "${PYTHON:=.venv/bin/python}" "${SOURCE:=/usr/share/datasets/fashion-mnist}" "${RUNS:=runs}"
: "${REPORT:=experiments/fashion_mnist_tokenizer}"
name=fashion_mnist_tokenizer
aim() { "$PYTHON" -m aim_lightning "$1" --config "experiments/$name.yaml" --runs_root "$RUNS" "${@:2}"; }

if [ ! -f data/fashion_mnist/val/manifest.json ]; then
  "$PYTHON" -m aim_lightning.data.images.fashion_mnist --source "$SOURCE" --out data/fashion_mnist
fi
for run in adversarial plain; do
  options=(--run "$run" "$@")
  if [ "$run" = plain ]; then options+=(--model.adversarial null); fi
  started=$SECONDS
  aim fit "${options[@]}"
  echo $((SECONDS - started)) >>"$RUNS/$name/$run/fit_seconds"
  aim validate "${options[@]}"
done
"$PYTHON" experiments/tokenizer_report.py "$RUNS/$name" adversarial plain --out "$REPORT" --command "$command" \
  ${COMMIT:+--commit "$COMMIT"}
