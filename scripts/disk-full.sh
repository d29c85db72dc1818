#!/bin/sh
# Trains on a real file system of 3 MB (tmpfs, needs root) that fills up, then makes room and goes on.
#     scripts/disk-full.sh
set -eu
cargo build --release --quiet
program=$PWD/target/release/lpr-train
work=$(mktemp -d)
trap 'umount "$work/small" 2>/dev/null || true; rm -rf "$work"' EXIT
mkdir "$work/small"
mount -t tmpfs -o size=3m tmpfs "$work/small"
cd "$work"
"$program" config init x.toml 2>/dev/null
# Two checkpoints of 1.6 MB do not fit beside each other.
set -- --config x.toml --override train.run_dir=small/run --override checkpoint.every_steps=20 \
    --override checkpoint.keep_last=3 --override model.hidden_size=32 --override train.total_steps=100
code=0
"$program" "$@" >out 2>err || code=$?
grep 'warning' err
echo "exit code $code (4 expected)"
"$program" checkpoint verify small/run
find small/run -name '.tmp*' | grep . && echo "leftovers" && exit 1
mount -o remount,size=64m "$work/small"
"$program" --resume "$@" >out 2>err
"$program" checkpoint verify small/run
"$program" -q --config x.toml --override train.run_dir=whole --override model.hidden_size=32 \
    --override train.total_steps=100
for file in model optimizer; do
    cmp "small/run/checkpoints/step-00000100/$file.safetensors" "whole/checkpoints/step-00000100/$file.safetensors"
done
echo "the run that met a full disk ends with the bits of one that did not"
