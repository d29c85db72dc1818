#!/usr/bin/env bash
# Everything to be measured on a GPU, on a machine with neither a Rust toolchain nor a network: devices,
# agreement with the CPU, ceilings, speed beside PyTorch, peak memory, time by kernel. Each part writes
# files into OUT; one that fails says so there and at the end, and the others still run.
#
#   scripts/gpu.sh PROGRAM OUT [PEERS PYTHON]
#
# PROGRAM is a release binary with the feature `cuda` or `wgpu`, for example stripped:
#   cargo build --release --features cuda && strip -o lpr-train target/release/lpr-train
# Beside this script the folder configs/ of the repository is needed. PEERS is the folder of the PyTorch peers
# (peer_train.py), PYTHON a Python with torch and transformers; without them there are no ceilings and no
# ratios. From the environment: DEVICE (cuda), SHAPE (paper-0.6b), PRECISION (bf16), STEPS (20), TESTS (a folder
# of test programs, target/release/deps/gpu-*; none). DEVICE=cpu SHAPE=cpu-small PRECISION=f32 STEPS=2 tries the
# script where there is no GPU.
set -uo pipefail
if [ $# -ne 2 ] && [ $# -ne 4 ]; then
    sed -n '2,16s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
program=$(realpath "$1") out=$2 peers=${3:-} python=${4:-}
device=${DEVICE:-cuda} shape=${SHAPE:-paper-0.6b} precision=${PRECISION:-bf16} steps=${STEPS:-20}
configs=$(cd "$(dirname "$0")/../configs" && pwd)
mkdir -p "$out"
out=$(cd "$out" && pwd)
failed=()

# part NAME COMMAND...: its output goes into OUT/NAME.txt.
part() {
    local name=$1
    shift
    echo "$name"
    "$@" > "$out/$name.txt" 2>&1 || { failed+=("$name"); tail -3 "$out/$name.txt"; }
}

# The losses of ten steps of a shipped model on this device and on the CPU.
agreement() {
    local config=$1 where
    for where in cpu "$device"; do
        rm -rf "$out/runs/$config-$where"
        "$program" --quiet --config "$configs/$config.toml" --device "$where" \
            --override 'data.train=["builtin:synthetic"]' --override 'data.validation=["builtin:synthetic"]' \
            --override train.total_steps=10 --override train.micro_batch_size=2 --override log.every_steps=1 \
            --override eval.max_tokens=2048 --override train.run_dir="$out/runs/$config-$where" || return 1
        grep -o '"loss_ce":[0-9.]*' "$out/runs/$config-$where/metrics.jsonl" | cut -d: -f2 \
            > "$out/runs/$config-$where.losses"
    done
    # Burn multiplies 32-bit floats as TF32 on NVIDIA's GPUs, which have 10 bits.
    paste "$out/runs/$config-cpu.losses" "$out/runs/$config-$device.losses" | awk '
        { d = $1 - $2; if (d < 0) d = -d; if (d > worst) worst = d; n++ }
        END { printf "%d losses, largest difference %g\n", n, worst; exit !(n >= 10 && worst < 5e-3) }'
}

# The products of the head and of the experts, and a copy, by the vendor's library.
ceilings() {
    "$python" - "$device" <<'PY'
import sys, time, torch
device = sys.argv[1]
dtype = torch.float32 if device == "cpu" else torch.bfloat16
scale = 16 if device == "cpu" else 1
def timed(action):
    sync = (lambda: None) if device == "cpu" else torch.cuda.synchronize
    for _ in range(3): action()
    sync(); start = time.perf_counter()
    for _ in range(10): action()
    sync(); return (time.perf_counter() - start) / 10
for name, batch, m, k, n in [("head, a chunk", 1, 1024, 1024, 151936), ("head, a micro-batch", 1, 16384, 1024, 16384),
        ("experts, gate and up", 128, 1024, 1024, 256), ("experts, down", 128, 1024, 128, 1024), ("8192", 1, 8192, 8192, 8192)]:
    m, n = m // scale, n // scale
    a, b = torch.randn(batch, m, k, dtype=dtype, device=device), torch.randn(batch, k, n, dtype=dtype, device=device)
    seconds = timed(lambda: torch.bmm(a, b))
    print(f"{name}: {batch} x {m} x {k} x {n}: {2 * batch * m * k * n / seconds / 1e12:.2f} TFLOP/s")
size = (1 << 30) // scale
source = torch.zeros(size // 4, device=device); target = torch.empty_like(source)
print(f"copy: {2 * size / timed(lambda: target.copy_(source)) / 1e9:.0f} GB/s read and written")
PY
}

# One run of bench; the first step, with compiling and choosing kernels, is reported apart in it.
ours() {
    "$program" bench --shape "$shape" --device "$device" --precision "$precision" --warmup 3 --steps "$steps" \
        --json "$@"
}

peer() {
    local dtype=$precision
    "$python" "$peers/peer_train.py" --shape "$shape" --device "${device%%:*}" --dtype "$dtype" --warmup 3 \
        --steps "$steps" --no-ceiling "$@" | tail -1
}

# The GPU's memory twice a second until the file OUT/measuring is gone.
watch_memory() {
    while [ -e "$out/measuring" ]; do
        nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits 2> /dev/null | sort -n | tail -1
        sleep 0.5
    done | sort -n | tail -1 > "$out/memory-$1.txt"
}

measured() {
    local name=$1
    shift
    touch "$out/measuring"
    watch_memory "$name" &
    local watcher=$!
    part "$name" "$@"
    rm -f "$out/measuring"
    wait "$watcher"
}

command -v nvidia-smi > /dev/null && part machine nvidia-smi
part doctor "$program" doctor --json
for config in tiny-qwen3moe-lpr tiny-qwen3moe tiny-mixtral tiny-deepseekv3; do
    part "agreement-$config" agreement "$config"
done
for test in ${TESTS:+"$TESTS"/*}; do
    part "test-$(basename "$test")" env LPR_TEST_DEVICE="$device" "$test"
done
[ -z "$python" ] || part ceilings ceilings
for round in 1 2 3; do
    measured "ours-$round" ours
    measured "ours-lpr-$round" ours --router lpr
    [ -n "$python" ] || continue
    for impl in tuned compile hf-grouped hf-v4loop; do
        measured "$impl-$round" peer --impl "$impl"
    done
done
if command -v nsys > /dev/null; then
    part profile nsys profile --force-overwrite true --stats true -o "$out/profile" \
        "$program" bench --shape "$shape" --device "$device" --precision "$precision" --warmup 3 --steps 3
else
    part profile "$program" bench --shape "$shape" --device "$device" --precision "$precision" --warmup 1 \
        --steps 2 --profile
fi
if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]}"
    exit 1
fi
