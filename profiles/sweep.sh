#!/usr/bin/env bash
# A sweep is a loop: one executed copy of a chapter for each value.     profiles/sweep.sh [FOLDER]
set -euo pipefail
cd "$(dirname "$0")/.."
for prevalence in 0.05 0.2 0.5; do
  .venv/bin/python -m bookmaking run notebooks/02_metrics.ipynb \
    -o "${1:-_build/sweep}/prevalence-$prevalence.ipynb" --profile smoke -p prevalence "$prevalence"
done
