#!/usr/bin/env bash
# Compiles every CUDA kernel of training steps with NVIDIA's compiler, on a machine without a GPU: a driver
# that computes nothing stands in for NVIDIA's (scripts/no-gpu/driver.c), NVRTC is the real one. Fails if a
# kernel does not compile, or if a step waits for results of the device more than once.
#
#   scripts/cuda-kernels.sh CU
#
# CU is a folder with CUDA's headers and NVRTC:
#   pip install --target CU --no-deps nvidia-cuda-runtime==13.0.* nvidia-cuda-nvrtc==13.0.* \
#       nvidia-cuda-cccl==13.0.* nvidia-cuda-crt==13.0.*
set -euo pipefail
if [ $# -ne 1 ]; then
    sed -n '2,11s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
cuda=$(cd "$1/nvidia/cu13" && pwd)
cd "$(dirname "$0")/.."
cargo build --release --features cuda
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Not libcuda.so.1, which NVRTC itself looks for.
cc -O1 -shared -fPIC -o "$work/libcuda.so" scripts/no-gpu/driver.c
export CUDA_PATH=$cuda LD_LIBRARY_PATH=$work:$cuda/lib
# train CONFIG PRECISION STEPS: what the driver counted.
train() {
    target/release/lpr-train bench --shape "configs/tiny-$1.toml" --precision "$2" --device cuda \
        --warmup 0 --steps "$3" > "$work/out" 2> "$work/err" || { cat "$work/out" "$work/err"; return 1; }
    grep '^no-gpu: [1-9]' "$work/err"
}
waits() { train "$@" | sed 's/.* \([0-9]*\) waits.*/\1/'; }
for config in qwen3moe-lpr qwen3moe mixtral-lpr deepseekv3; do
    for precision in f32 bf16; do
        echo "$config, $precision"
        train $config $precision 2
    done
done
two=$(waits qwen3moe-lpr f32 2) four=$(waits qwen3moe-lpr f32 4)
echo "waits for results: $two in 2 steps, $four in 4"
[ $((four - two)) -eq 2 ]
