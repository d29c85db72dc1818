# Everything that must hold before a commit.
check: format lint test docs

# A macro declares the routers, so `cargo fmt` does not find their files.
routers := "crates/lpr-model/src/router/*.rs crates/lpr-model/src/router/*/mod.rs"

format:
    cargo fmt --all --check
    rustfmt --edition 2024 --check {{routers}}

# Formats everything.
fmt:
    cargo fmt --all
    rustfmt --edition 2024 {{routers}}

lint:
    cargo clippy --release --workspace --all-targets -- -D warnings

test:
    cargo test --release --workspace

docs:
    RUSTDOCFLAGS="-D warnings" cargo doc --release --workspace --no-deps

# Writes docs/cli.md, docs/config.md and docs/config.schema.json from the definitions.
reference:
    LPR_UPDATE_DOCS=1 cargo test --release --workspace --test reference

# Reference vectors only; LPR_GOLDEN_DIR=... for another set.
parity:
    cargo test --release --workspace --test parity -- --nocapture

# Under a minute: trains the quickstart and prints its summary.
quickstart:
    cargo run --release -- --config configs/quickstart.toml --override train.run_dir=runs/quickstart-{{`date +%s`}}

train config:
    cargo run --release -- --config {{config}}

# The GPU path on Vulkan; without a GPU, on Debian: apt-get install mesa-vulkan-drivers libvulkan1
gpu-test:
    cargo test --profile gpu-test --workspace --features lpr-train/wgpu --test gpu

# What the feature `cuda` compiles, type-checked; needs no GPU, driver or toolkit.
cuda-check:
    cargo check --profile gpu-test --workspace --features lpr-train/cuda

# Every CUDA kernel of a training step through NVRTC, without a GPU; CU as the script says.
cuda-kernels cu:
    scripts/cuda-kernels.sh {{cu}}

# Licences, sources and known weaknesses of all dependencies; needs cargo-deny and, for the list, the network.
deny:
    cargo deny check

# Fuzzes one target of fuzz/ for so many seconds; needs cargo-fuzz and a nightly compiler.
fuzz target seconds="1200":
    cargo run --manifest-path fuzz/Cargo.toml --bin seeds
    cargo +nightly fuzz run --sanitizer none --features train {{target}} -- -max_total_time={{seconds}} -timeout=20 -rss_limit_mb=4096

# 240 random kills over every family, router and packing; minutes.
kill-test:
    LPR_KILLS=240 cargo test --release --workspace --test kills -- --nocapture

# Resident memory over 2,000 steps.
memory-test:
    scripts/memory-flat.sh

# A real file system that fills up; needs root.
disk-full-test:
    scripts/disk-full.sh
