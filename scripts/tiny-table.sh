#!/usr/bin/env bash
# Trains every tiny config given (default: all of them) on the same text and prints one table row each,
# measured on the whole validation data. Paths are relative to the project's folder.
#
#   scripts/tiny-table.sh 'fineweb/*.parquet' 'c4/*.json.gz' tokenizer.json runs/table [CONFIG...]
set -euo pipefail
if [ $# -lt 4 ]; then
    sed -n '2,6s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
train=$1 validation=$2 tokenizer=$3 out=$4
shift 4
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- configs/tiny-*.toml
cargo build --release
lpr=target/release/lpr-train
echo '| config | loss (nats) | perplexity | Gini | min-max ratio | dead experts | tokens |'
echo '|---|---|---|---|---|---|---|'
for config in "$@"; do
    name=$(basename "$config" .toml)
    run="$out/$name"
    resume=()
    [ ! -d "$run" ] || resume=(--resume)
    "$lpr" "${resume[@]}" -q --config "$config" \
        --override "data.train=[\"$train\"]" \
        --override "data.validation=[\"$validation\"]" \
        --override "data.tokenizer=\"$tokenizer\"" \
        --override "train.run_dir=\"$run\""
    newest=$(cat "$run/checkpoints/latest")
    "$lpr" eval --checkpoint "$run/checkpoints/$newest" --max-tokens 1000000000 --json |
        sed -n 's/^  "\(loss\|perplexity\|gini\|min_max_ratio\|dead_experts\|tokens\)": \(.*[0-9]\),*$/\1 \2/p' |
        awk -v name="$name" '{ v[$1] = $2 } END { printf "| %s | %.4f | %.2f | %.4f | %.4f | %d | %d |\n",
            name, v["loss"], v["perplexity"], v["gini"], v["min_max_ratio"], v["dead_experts"], v["tokens"] }'
done
