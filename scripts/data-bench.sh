#!/usr/bin/env bash
# Speed of reading and tokenizing beside Python, interleaved round by round on one machine, as a table of
# ratios. Nothing else should run meanwhile.
#
#   scripts/data-bench.sh PEERS PYTHON PARQUET TOKENIZER [ROUNDS]
#
# PEERS is the folder of the Python peers (peer_data.py, peer_bench.py), PYTHON a Python with pyarrow,
# tokenizers, datasets, transformers and torch. PARQUET is a glob, in quotes; TOKENIZER a tokenizer.json.
# The peer `arrow` packs rows of 1,025 tokens from pyarrow and tokenizers, `hf-official` cuts and pads with
# datasets and transformers, as the paper does. The program must find as many tokens as they do.
set -euo pipefail
if [ $# -lt 4 ]; then
    sed -n '2,10s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
peers=$(cd "$1" && pwd) python=$2 parquet=$3 tokenizer=$4 rounds=${5:-5}
cargo build --release --manifest-path "$(dirname "$0")/../Cargo.toml"
ours="$(cd "$(dirname "$0")/.." && pwd)/target/release/lpr-train data bench --data $parquet --tokenizer $tokenizer"
peer="$python $peers/peer_data.py --parquet '$parquet' --tokenizer $tokenizer"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$python" "$peers/peer_bench.py" --rounds "$rounds" --timeout 3600 --out "$work/rounds.json" \
    --cmd packed-1="$ours --threads 1 --sequence-length 1025 --json" \
    --cmd packed-2="$ours --threads 2 --sequence-length 1025 --json" \
    --cmd paper-1="$ours --threads 1 --packing none --json" \
    --cmd paper-2="$ours --threads 2 --packing none --json" \
    --cmd arrow-1="$peer --impl arrow --threads 1" \
    --cmd arrow-2="$peer --impl arrow --threads 2" \
    --cmd hf-official-1="$peer --impl hf-official --threads 1" \
    --cmd hf-official-2="$peer --impl hf-official --threads 2" > "$work/table" || { cat "$work/table"; exit 1; }

"$python" - "$work/rounds.json" <<'PY'
import json, statistics as st, sys
rounds = json.load(open(sys.argv[1]))
def each(key, a, b):
    ratios = sorted(x[key] / y[key] for x, y in zip(rounds[a], rounds[b]))
    return f"{st.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
print("| run | tokens | tokens/s, median | tokens per CPU second | peak memory, MiB | "
      "ours / this: per CPU second, median (range) | peak memory |")
print("|---|---|---|---|---|---|---|")
for name, results in rounds.items():
    kind, threads = name.rsplit("-", 1)
    base = {"arrow": "packed", "hf-official": "paper"}.get(kind)
    ratios = "|" if base is None else " | ".join(
        each(key, f"{base}-{threads}", name) for key in ("tok_per_cpu_s", "rss_peak_mb"))
    figures = [st.median(x[key] for x in results) for key in ("tok_s_median", "tok_per_cpu_s", "rss_peak_mb")]
    print(f"| {name} | {results[0]['tokens']} | {figures[0]:.0f} | {figures[1]:.0f} | {figures[2]:.0f} | {ratios} |")
    if base:
        # The peers drop the last row or batch if it is not full.
        missing = rounds[f"{base}-{threads}"][0]["tokens"] - results[0]["tokens"]
        if not 0 <= missing < 8 * 1025:
            sys.exit(f"{name} has {missing} tokens fewer than {base}-{threads}")
print(f"\nTwo threads over one, tokens/s: packed {each('tok_s_median', 'packed-2', 'packed-1')}, "
      f"paper {each('tok_s_median', 'paper-2', 'paper-1')}")
PY
