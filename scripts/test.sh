#!/usr/bin/env bash
# Installs into a virtual environment of its own and runs all checks: bash scripts/test.sh [pytest arguments]
# VENV chooses the folder (default .venv-test), WORKERS the number of test processes; for the rest see
# scripts/make_venv.sh.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=${VENV:-.venv-test}
bash scripts/make_venv.sh "$venv" dev
# The test processes share the cores; a thread pool in each would only make them wait for each other.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} HF_HUB_OFFLINE=1

failed=()
check() {
    echo "== $*"
    "$venv/bin/python" -m "$@" || failed+=("$1")
}
check ruff check .
check ruff format --check .
check mypy
check pytest -q -n "${WORKERS:-2}" "$@"
if [ ${#failed[@]} -gt 0 ]; then
    echo "== Failed: ${failed[*]}" >&2
    exit 1
fi
echo "== All checks passed"
