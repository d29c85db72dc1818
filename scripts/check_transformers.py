#!/usr/bin/env python3
"""Trains small models, exports them, opens the folders in transformers and compares the logits.

    cargo build --release && python3 scripts/check_transformers.py [target/release/lpr-train]

Needs torch, transformers and safetensors. Also imports what transformers saves, in both of its layouts,
and compares the logits again. Exit code 1 if any difference is above 1e-4.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import os

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

LIMIT = 1e-4
COMMON = """vocab_size = 257
hidden_size = 48
num_hidden_layers = 3
num_attention_heads = 4
moe_intermediate_size = 24
num_experts = 8
top_k = 2
"""
GROUPED = 'num_key_value_heads = 2\nhead_dim = {head_dim}\n'
LATENT = """q_lora_rank = 24
kv_lora_rank = 16
qk_nope_head_dim = 8
qk_rope_head_dim = 8
v_head_dim = 12
num_shared_experts = {shared}
first_k_dense_replace = {dense}
{width}
"""
# (name, family, keys of [model], keys of [router])
CASES = [
    ("qwen3_moe", "qwen3_moe", GROUPED.format(head_dim=16), 'kind = "softmax_topk"'),
    ("qwen3_moe, normalized, tied", "qwen3_moe",
     GROUPED.format(head_dim=16) + "tie_word_embeddings = true",
     'kind = "softmax_topk"\nnorm_topk_prob = true'),
    ("mixtral", "mixtral", GROUPED.format(head_dim=12),
     'kind = "softmax_topk"\nnorm_topk_prob = true'),
    ("mixtral, wide heads", "mixtral", GROUPED.format(head_dim=20) + "rope_theta = 5000.0",
     'kind = "softmax_topk"\nnorm_topk_prob = true'),
    ("deepseek_v3, dense block, groups, bias", "deepseek_v3",
     LATENT.format(shared=2, dense=1, width="intermediate_size = 40"),
     'kind = "sigmoid_topk"\nn_group = 4\ntopk_group = 2\nrouted_scaling_factor = 2.5\n'
     "bias_update_rate = 0.01"),
    ("deepseek_v3, one group, not normalized", "deepseek_v3",
     LATENT.format(shared=1, dense=0, width=""),
     'kind = "sigmoid_topk"\nnorm_topk_prob = false'),
]
RUN = """
[data]
train = ["builtin:synthetic"]
validation = ["builtin:synthetic"]
sequence_length = 96
[optimizer]
learning_rate = 1e-2
[train]
total_steps = 60
micro_batch_size = 8
run_dir = "{folder}/run"
[eval]
max_tokens = 1000
"""


def ours(program, *args):
    subprocess.run([program, *map(str, args)], check=True, stdout=subprocess.DEVNULL)


def our_batch(program, checkpoint, file):
    """Token ids, logits and chosen experts of a checkpoint, from the program itself."""
    ours(program, "eval", "--checkpoint", checkpoint, "--data", "builtin:synthetic",
         "--max-tokens", 1, "--logits", file)
    return load_file(file)


def difference(model, batch):
    """The largest difference of a logit on a token, and the largest logit."""
    is_token = batch["is_token"].bool()
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["is_token"]).logits
    gap = (logits - batch["logits"]).abs()[is_token]
    return gap.max().item(), batch["logits"][is_token].abs().max().item()


def load(folder):
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True)
    problems = {kind: sorted(names) for kind, names in report.items() if names}
    assert not problems, problems
    return model.eval()


def check(program, folder, family, model_keys, router_keys):
    config = folder / "config.toml"
    config.write_text(f'[model]\nfamily = "{family}"\n{COMMON}{model_keys}\n[router]\n{router_keys}'
                      + RUN.format(folder=folder))
    ours(program, "-q", "--config", config)
    checkpoint = folder / "run/checkpoints/step-00000060"
    batch = our_batch(program, checkpoint, folder / "ours.safetensors")
    gaps = {}
    for name, flags in (("one file", []), ("shards", ["--max-shard-size", "100KB"])):
        out = folder / f"exported {name}"
        ours(program, "export", "--checkpoint", checkpoint, "--out", out, *flags)
        model = load(out)
        gaps[name], largest = difference(model, batch)
    text = " Prototypes route  tokens;\n\tnaive \u00e9\u4e16\U0001f600 it's 42."
    tokens = AutoTokenizer.from_pretrained(out)
    assert tokens(text)["input_ids"] == list(text.encode()), "the tokenizer makes other ids"
    assert tokens.decode(tokens(text)["input_ids"]) == text
    # What transformers writes of the same model, in the layout of the hub and in its own.
    for name, original in (("hub layout", True), ("fused layout", False)):
        saved, back = folder / f"saved {name}", folder / f"imported {name}"
        model.save_pretrained(saved, save_original_format=original)
        fused = any("experts.gate_up_proj" in key
                    for key in load_file(saved / "model.safetensors"))
        assert fused != original, "transformers wrote another layout than asked for"
        keys = folder / "own.toml"
        keys.write_text("[data]\ntrain = ['builtin:synthetic']\nsequence_length = 96\n"
                        "[train]\ntotal_steps = 1\nmicro_batch_size = 8\n")
        ours(program, "import", "--from", saved, "--out", back, "--config", keys)
        again = our_batch(program, back, folder / "again.safetensors")
        same = all(torch.equal(batch[key], again[key]) for key in batch)
        assert batch.keys() == again.keys() and same, f"{name}: not the same bits"
    saved = json.loads((folder / "exported shards/model.safetensors.index.json").read_text())
    return gaps, largest, len(set(saved["weight_map"].values())), int(batch["is_token"].sum())


def main():
    program = str(Path(sys.argv[1] if len(sys.argv) > 1 else "target/release/lpr-train").resolve())
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, transformers {transformers.__version__}; 60 steps each;")
    print("largest difference of a logit over all tokens of a batch, 32-bit floats on the CPU")
    good = True
    for name, *case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            gaps, largest, shards, tokens = check(program, Path(folder), *case)
        good &= all(gap <= LIMIT for gap in gaps.values())
        print(f"{name:40} {tokens} tokens, largest logit {largest:5.2f}: "
              f"one file {gaps['one file']:.2e}, {shards} shards {gaps['shards']:.2e}; "
              "both layouts of transformers import to the same bits")
    print("all within 1e-4" if good else "DIFFERENT")
    sys.exit(not good)


if __name__ == "__main__":
    main()
