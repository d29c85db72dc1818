#!/usr/bin/env bash
# Speed of this program beside PyTorch, interleaved round by round on one machine, as a table of ratios.
# Nothing else should run meanwhile.
#
#   scripts/bench.sh PEERS PYTHON [SHAPE] [ROUNDS] [THREADS]
#
# PEERS is the folder of the PyTorch peers (peer_train.py, peer_bench.py, fakeintel.c), PYTHON a Python
# with torch, transformers and safetensors. SHAPE is cpu-small (default) or cpu-medium. First the losses of
# the first four steps from the peer's initial weights are compared; the script ends there if they differ.
set -euo pipefail
if [ $# -lt 2 ]; then
    sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
peers=$(cd "$1" && pwd) python=$2 shape=${3:-cpu-small} rounds=${4:-5} threads=${5:-2}
cd "$(dirname "$0")/.."
cargo build --release
ours=target/release/lpr-train
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cc -shared -fPIC -o "$work/fakeintel.so" "$peers/fakeintel.c"
export OMP_WAIT_POLICY=PASSIVE
steps=10
[ "$shape" = cpu-small ] || steps=4
peer="$python $peers/peer_train.py --shape $shape --threads $threads --steps $steps --no-ceiling"

for router in vanilla lpr; do
    init=$work/$router.safetensors
    $peer --router $router --impl tuned --warmup 0 --steps 4 --save-init "$init" | tail -1 > "$work/theirs"
    "$ours" bench --shape "$shape" --router $router --threads "$threads" --warmup 0 --steps 4 --init "$init" \
        --json > "$work/ours"
    "$python" - "$router" "$work/ours" "$work/theirs" <<'PY'
import json, sys
router, *files = sys.argv[1:]
ours, theirs = (json.load(open(f))["losses"][:4] for f in files)
limit = {"vanilla": 2e-4, "lpr": 1e-3}[router]  # the noise of the peer's LPR router is another
worst = max(abs(a - b) for a, b in zip(ours, theirs))
print(f"{router}: losses of 4 steps {[round(x, 5) for x in ours]}, peer {theirs}, largest difference {worst:.1e}")
sys.exit(f"more than {limit}" if worst > limit else 0)
PY
done

avx512="env LD_PRELOAD=$work/fakeintel.so"
"$python" "$peers/peer_bench.py" --rounds "$rounds" --timeout 3600 --out "$work/rounds.json" \
    --cmd ours="$ours bench --shape $shape --threads $threads --steps $steps --json" \
    --cmd ours-lpr="$ours bench --shape $shape --router lpr --threads $threads --steps $steps --json" \
    --cmd ours-1-thread="$ours bench --shape $shape --threads 1 --steps $steps --json" \
    --cmd ours-eval="$ours bench --shape $shape --mode eval --threads $threads --steps $steps --json" \
    --cmd tuned="$peer --impl tuned" \
    --cmd tuned-avx512="$avx512 $peer --impl tuned" \
    --cmd compile="$peer --impl compile" \
    --cmd compile-avx512="$avx512 $peer --impl compile" \
    --cmd hf-grouped="$peer --impl hf-grouped" \
    --cmd hf-v4loop="$peer --impl hf-v4loop" \
    --cmd hf-grouped-eval="$peer --impl hf-grouped --mode eval" > "$work/table" || { cat "$work/table"; exit 1; }

"$python" - "$work/rounds.json" <<'PY'
import json, statistics as st, sys
rounds = json.load(open(sys.argv[1]))
rate = lambda name, r: rounds[name][r]["tok_s_median"]
count = len(rounds["ours"])
def ratio(a, b):
    each = sorted(rate(a, r) / rate(b, r) for r in range(count))
    return f"{st.median(each):.2f} ({each[0]:.2f} to {each[-1]:.2f})"
print("| run | tokens/s, median | tokens/s per CPU second | peak memory, MiB | ours / this, median (range) |")
print("|---|---|---|---|---|")
for name, results in rounds.items():
    base = "ours-eval" if name.endswith("eval") else "ours"
    own = "" if name == base else ratio(base, name)
    figures = [st.median(x[key] for x in results) for key in ("tok_s_median", "tok_per_cpu_s", "rss_peak_mb")]
    print(f"| {name} | {figures[0]:.0f} | {figures[1]:.0f} | {figures[2]:.0f} | {own} |")
PY
