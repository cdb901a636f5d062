#!/usr/bin/env bash
# All that must pass, the quickest to fail first. CI runs this file; run it before you send a change.
set -euo pipefail
cd "$(dirname "$0")/.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

ruff check .
ruff format --check .
lint-imports
pyright --pythonpath "$(command -v python)" &
types=$!
NO_MKDOCS_2_WARNING=1 mkdocs build --strict --quiet --site-dir "$scratch/site"
wait "$types"
pytest | tee "$scratch/pytest"
# Without the checks of types and shapes, as users run it, to save time.
pytest -m "slow and not device and not nightly" --jaxtyping-packages= tests | tee "$scratch/pytest-slow"
python scripts/reproduce.py quickstart --results-dir "$scratch/results"

tail -qn 1 "$scratch/pytest" "$scratch/pytest-slow"
