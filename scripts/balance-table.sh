#!/usr/bin/env bash
# The same small model, experts, data and seed with five routers: two baselines that hardly balance
# (loss pooled over layers, frozen correction bias), two that do (Switch loss, updated bias), and LPR.
# Prints the table of tiny-table.sh.
#
#   scripts/balance-table.sh 'fineweb/*.parquet' 'c4/*.json.gz' tokenizer.json runs/balance [KEY=VALUE...]
#   MODEL=tiny-deepseekv3 scripts/balance-table.sh ... runs/deepseek train.seed=43
set -euo pipefail
if [ $# -lt 4 ]; then
    sed -n '2,7s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
files=("${@:1:4}")
common=${*:5}
model=${MODEL:-tiny-qwen3moe}
config=configs/$model.toml
softmax='router.kind="softmax_topk" router.aux_loss'
sigmoid='router.kind="sigmoid_topk" router.bias_update_rate'
exec "$(dirname "$0")/tiny-table.sh" "${files[@]}" \
    "$config pooled-aux $softmax=\"pooled\" router.aux_loss_weight=1e-3 router.equiv_accum=18 $common" \
    "$config frozen-bias $sigmoid=0.0 $common" \
    "$config switch-aux $softmax=\"switch\" router.aux_loss_weight=1e-2 router.equiv_accum=1 $common" \
    "$config updated-bias $sigmoid=1e-3 $common" \
    "configs/$model-lpr.toml lpr $common"
