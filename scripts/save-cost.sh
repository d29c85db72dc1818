#!/bin/sh
# What a save costs the training loop at the shape cpu-small: the steps after a save beside the others.
#     scripts/save-cost.sh [steps]
set -eu
cargo build --release --quiet
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
target/release/lpr-train -q --config crates/lpr-train/src/bench/shapes/cpu-small.toml \
    --override router.kind=softmax_topk --override "train.run_dir=$work/run" \
    --override "train.total_steps=${1:-320}" --override log.every_steps=1 --override checkpoint.every_steps=16
# With a save after step 16 n, step 16 n + 1 takes the snapshot and meets shared memory; the save itself may
# still be written during the following ones. The last eight before the next save are undisturbed.
sed -n 's/^{"step":\([0-9]*\),.*"step_time_ms":\([0-9.]*\).*/\1 \2/p' "$work/run/metrics.jsonl" |
    awk '$1 > 16 { k = $1 % 16; print (k == 1 ? "after" : k > 8 || k == 0 ? "others" : "between"), $2 }' |
    sort -k1,1 -k2,2n | awk '{ n[$1]++; v[$1, n[$1]] = $2 }
    END {
        for (name in n) printf "%-8s median %.1f ms, lowest quarter %.1f ms, of %d steps\n",
            name, v[name, int((n[name] + 1) / 2)], v[name, int((n[name] + 3) / 4)], n[name]
    }'
