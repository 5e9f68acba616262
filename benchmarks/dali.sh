#!/usr/bin/env bash
# Makes .venv-dali, in which benchmarks/dali_worker.py runs: DALI has needs of its own, and 0.7 GB of libraries.
# PYTHON=python3.12 picks the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."

"${PYTHON:-python3}" -m venv .venv-dali
echo '*' >.venv-dali/.gitignore
.venv-dali/bin/python -m pip install --quiet --disable-pip-version-check nvidia-dali-cuda130==2.4.0
.venv-dali/bin/python -c 'import nvidia.dali; print("DALI", nvidia.dali.__version__, "is ready in .venv-dali")'
