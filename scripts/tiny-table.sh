#!/usr/bin/env bash
# Trains every row given (default: all tiny configs) on the same text and prints one table row each.
# A ROW is one argument: a config, then, if it is changed, a name and what to override.
#
#   scripts/tiny-table.sh 'fineweb/*.parquet' 'c4/*.json.gz' tokenizer.json runs/table [ROW...]
#   ... 'configs/tiny-qwen3moe.toml switch router.aux_loss="switch" train.seed=7'
#
# Loss, perplexity, Gini, min-max ratio and dead experts: of the last weights on the whole validation
# data, exact counts, no padding. The two figures called EMA: the paper's smoothed ones, of the last
# training steps, padding included. Paths are relative to the project's folder.
set -euo pipefail
if [ $# -lt 4 ]; then
    sed -n '2,10s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
train=$1 validation=$2 tokenizer=$3 out=$4
shift 4
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- configs/tiny-*.toml
cargo build --release
lpr=target/release/lpr-train
figure() { sed -n "s/.*\"$1\": *\([-+.0-9eE]*\).*/\1/p" | head -n 1; }
echo '| run | loss (nats) | perplexity | Gini | min-max ratio | Gini, EMA | min-max ratio, EMA' \
    '| dead experts | tokens |'
echo '|---|---|---|---|---|---|---|---|---|'
for row in "$@"; do
    read -r config name changes <<<"$row"
    name=${name:-$(basename "$config" .toml)}
    run="$out/$name"
    arguments=(-q --config "$config")
    [ ! -d "$run" ] || arguments+=(--resume)
    for change in $changes; do
        arguments+=(--override "$change")
    done
    "$lpr" "${arguments[@]}" \
        --override "data.train=[\"$train\"]" \
        --override "data.validation=[\"$validation\"]" \
        --override "data.tokenizer=\"$tokenizer\"" \
        --override "train.run_dir=\"$run\""
    newest=$(cat "$run/checkpoints/latest")
    found=$("$lpr" eval --checkpoint "$run/checkpoints/$newest" --max-tokens 1000000000 --json)
    last=$(grep '"gini_ema"' "$run/metrics.jsonl" | tail -n 1 | sed 's/"layers".*//')
    exact() { figure "$1" <<<"$found"; }
    smoothed() { sed "s/.*\"$1\"/\"$1\"/" <<<"$last" | figure "$1"; }
    LC_ALL=C printf '| %s | %.4f | %.2f | %.4f | %.2e | %.4f | %.2e | %d | %d |\n' "$name" \
        "$(exact loss)" "$(exact perplexity)" "$(exact gini)" "$(exact min_max_ratio)" \
        "$(smoothed gini_ema)" "$(smoothed min_max_ratio_ema)" "$(exact dead_experts)" "$(exact tokens)"
done
