#!/usr/bin/env bash
# Writes requirements.lock (everything but FFCV), requirements-ffcv.lock (what the extra `ffcv` adds) and
# requirements-docs.lock (the site's generator), for Python 3.11 to 3.13. Versions already locked stay unless UPGRADE=1.
set -euo pipefail
cd "$(dirname "$0")/.."

uv=.venv/bin/uv
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

compile() {
    "$uv" pip compile pyproject.toml --quiet --universal --python-version 3.11 \
        --extra corruptions --extra demo --extra deploy --extra language --extra mnn --extra openvino --extra slurm --extra tensorboard --group dev --no-annotate --no-header "$@"
}

# All of it is resolved at once, so that the two files agree; FFCV's share is then what the rest does not need.
[[ ${UPGRADE:-} ]] || cat requirements.lock requirements-ffcv.lock >"$scratch/all"
compile --extra ffcv --output-file "$scratch/all" >"$scratch/shown"
compile --constraint "$scratch/all" --output-file "$scratch/base" >"$scratch/shown"
{
    echo "# Written by 'make lock': the pinned packages of acdc, its demo and its development tools."
    cat "$scratch/base"
} >requirements.lock
{
    echo "# Written by 'make lock': what the extra 'ffcv' adds to requirements.lock."
    grep --line-regexp --fixed-strings --invert-match --file="$scratch/base" "$scratch/all"
} >requirements-ffcv.lock

[[ ${UPGRADE:-} || ! -e requirements-docs.lock ]] || cat requirements-docs.lock >"$scratch/docs"
"$uv" pip compile --quiet --universal --python-version 3.11 --group docs --constraint requirements.lock --no-annotate --no-header \
    --output-file "$scratch/docs" >"$scratch/shown"
{
    echo "# Written by 'make lock': what 'make docs' builds the site with."
    cat "$scratch/docs"
} >requirements-docs.lock
