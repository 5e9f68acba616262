#!/usr/bin/env bash
# The figures of docs/analyses.md, from runs on the demo digits. What is trained or swept already is not done again.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1
acdc=.venv/bin/acdc
study=studies/epoch_length_demo

train() { # recipe, run, keys
    local recipe=$1 run=runs/$2 settings=()
    shift 2
    for key in "$@"; do settings+=(--set "$key"); done
    "$acdc" train "$recipe" --out "$run" --resume auto "${settings[@]}"
}

draw() { # analysis, its arguments
    local out=runs/figures/$1 json stem
    rm -rf "$out"
    "$acdc" analyze "$@" --out "$out"
    for json in "$out"/*.json; do
        stem=${json%.json}
        for figure in "$stem"*.svg; do cp "$figure" "docs/analyses/$1${figure#"$stem"}"; done
    done
}

[ -e data/demo/train.beton ] || "$acdc" data write demo
"$acdc" sweep epoch_length_demo
train demo demo_kept checkpoint.keep_every=1
train demo_gmp demo_gmp checkpoint.keep_every=1
train demo_rigl demo_rigl checkpoint.keep_every=1
train demo_dense demo_dense
train demo demo_98 sparsity.target=0.98 optim.clip_norm=1.0
for decay in 0.0001 0.002; do
    train demo "demo_98_wd_$decay" sparsity.target=0.98 optim.clip_norm=1.0 "optim.weight_decay=$decay"
done
train demo_corrupt_labels corrupt_90
train demo_corrupt_labels corrupt_95 sparsity.target=0.95

mkdir -p docs/analyses
draw curves runs/demo_kept runs/demo_gmp
draw masks runs/demo_gmp runs/demo_kept runs/demo_rigl
draw channels runs/demo_kept runs/demo_98
draw decompression runs/demo_98_wd_0.0001 runs/demo_98 runs/demo_98_wd_0.002
draw agreement runs/demo_kept
draw memorisation runs/corrupt_90 runs/corrupt_95
draw sharpness runs/demo_kept --set along=true --set images=200
draw interpolate runs/demo_kept --set images=1000 --set points=4
draw calibration runs/demo_kept
[ -e data/multidigits/train.beton ] || "$acdc" data write multidigits
"$acdc" sweep multidigits_epoch_length
draw groups studies/multidigits_epoch_length/runs/seed=0,epochs=10,sparsity={dense,0.95}
draw corruptions runs/demo_dense runs/demo_kept runs/demo_98
draw compare "$study"/runs/sparsity={dense,0.9,0.98},epochs={16,32},seed={0,1,2}
