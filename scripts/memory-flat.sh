#!/bin/sh
# Resident memory over a run of 2,000 steps with a save and an evaluation every 25, so that the first of each is
# over when the first quarter begins: the last quarter beside the first. Trains the default configuration, or
# CONFIG, with overrides on top.
#     scripts/memory-flat.sh [CONFIG [SECTION.KEY=VALUE...]]
set -eu
cargo build --release --quiet
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
config=$work/x.toml
if [ $# -gt 0 ]; then
    config=$1
    shift
else
    target/release/lpr-train config init "$config" 2>/dev/null
fi
for override; do
    set -- "$@" --override "$override"
    shift
done
target/release/lpr-train -q --config "$config" --override "train.run_dir=$work/run" \
    --override train.total_steps=2000 --override checkpoint.every_steps=25 --override eval.every_steps=25 \
    --override log.every_steps=1 "$@" &
while kill -0 $! 2>/dev/null; do
    steps=$(grep -c . "$work/run/metrics.jsonl" 2>/dev/null || true)
    kib=$(awk '/^VmRSS/ { print $2 }' "/proc/$!/status" 2>/dev/null || true)
    [ -n "$kib" ] && echo "${steps:-0} $kib"
    sleep 0.1
done >"$work/memory"
# The first 50 steps are the start.
awk '$1 > 50 && $1 <= 500 { first += $2; n += 1 } $1 > 1500 { last += $2; m += 1 }
    END {
        first /= n; last /= m
        printf "resident memory: %.1f MiB in steps 50-500, %.1f MiB in steps 1500-2000, %+.2f %%\n",
            first / 1024, last / 1024, 100 * (last / first - 1)
        exit !(last < 1.02 * first)
    }' "$work/memory"
