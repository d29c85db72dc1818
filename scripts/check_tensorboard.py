#!/usr/bin/env python3
"""Reads the event files of runs with TensorBoard's own reader and compares every value with
metrics.jsonl.

    python3 scripts/check_tensorboard.py runs/NAME...

Needs `pip install tensorboard`. Scalars must be equal after rounding to 32 bits, as event files hold
them; loads must be equal to the last choice. Fails on a value that is missing on either side.
"""

import json
import math
import struct
import sys
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

STEP_TAGS = {
    **{f"train/{key}": key for key in ("loss_ce", "loss_total", "grad_norm", "lr", "epoch", "tokens_seen")},
    **{f"train/{key}_total": f"{key}_total" for key in ("nonfinite", "spikes", "skipped", "rollbacks")},
    **{f"speed/{key}": key for key in ("tok_s", "data_wait_ms", "step_time_ms")},
}
EVAL_TAGS = {f"eval/{key}": key for key in ("loss", "loss_batch_mean", "perplexity", "tokens")}
BALANCE = ["gini", "min_max_ratio", "dead_experts", "gini_with_padding", "min_max_ratio_with_padding"]
SMOOTHED = ["gini_ema", "min_max_ratio_ema", "gini_ema_soft", "min_max_ratio_ema_soft"]
LAYER = ["gini", "min_max_ratio", "cv", "max_over_mean", "normalized_entropy", "dead_experts"]


def rounded(value):
    """As a 32-bit float; null is not a number."""
    return math.nan if value is None else struct.unpack("<f", struct.pack("<f", value))[0]


def expected(run):
    """Scalars and loads by tag and step, from metrics.jsonl."""
    scalars, loads = {}, {}
    for line in Path(run, "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        is_step = "loss_ce" in record
        if not is_step and "eval" not in record:
            continue
        fields = record if is_step else record["eval"]
        section = "moe" if is_step else "eval"
        values = {tag: fields[key] for tag, key in (STEP_TAGS if is_step else EVAL_TAGS).items()}
        values |= {f"aux/{key[4:]}": value for key, value in fields.items() if key.startswith("aux.")}
        values |= {f"{section}/{key}": fields[key] for key in BALANCE + (SMOOTHED if is_step else [])}
        for layer in fields["layers"]:
            name = f"{section}/layer_{layer['layer']:02}"
            values |= {f"{name}/{key}": layer[key] for key in LAYER}
            loads.setdefault(f"{name}/load", {})[record["step"]] = layer["counts"]
        for tag, value in values.items():
            scalars.setdefault(tag, {})[record["step"]] = rounded(value)
    return scalars, loads


def same(a, b):
    """Equal, or both not a number."""
    return a == b or (math.isnan(a) and math.isnan(b))


def check(run):
    """The differences between event files and metrics of a run, and how many values were compared."""
    events = EventAccumulator(run, size_guidance={"scalars": 0, "histograms": 0, "tensors": 0})
    events.Reload()
    scalars, loads = expected(run)
    tags = events.Tags()
    problems, compared = [], 0
    for kind, wanted in (("scalars", scalars), ("histograms", loads)):
        missing, unknown = set(wanted) - set(tags[kind]), set(tags[kind]) - set(wanted)
        problems += [f"{kind}: {tag} is missing" for tag in sorted(missing)]
        problems += [f"{kind}: {tag} is in the event files only" for tag in sorted(unknown)]
    for tag in sorted(set(scalars) & set(tags["scalars"])):
        found = {event.step: event.value for event in events.Scalars(tag)}
        if len(found) != len(events.Scalars(tag)) or list(found) != list(scalars[tag]):
            problems.append(f"{tag}: steps {list(found)}, not {list(scalars[tag])}")
            continue
        compared += len(found)
        for step, value in found.items():
            if not same(value, scalars[tag][step]):
                problems.append(f"{tag} at step {step}: {value}, not {scalars[tag][step]}")
    for tag in sorted(set(loads) & set(tags["histograms"])):
        found = {event.step: event.histogram_value for event in events.Histograms(tag)}
        if list(found) != list(loads[tag]):
            problems.append(f"{tag}: steps {list(found)}, not {list(loads[tag])}")
            continue
        for step, histogram in found.items():
            # Bucket i ends at i + 1 and holds what expert i got; empty ones may be left out.
            counts = [0] * len(loads[tag][step])
            for limit, count in zip(histogram.bucket_limit, histogram.bucket):
                if count:
                    counts[round(limit) - 1] += count
            compared += len(counts)
            if counts != loads[tag][step]:
                problems.append(f"{tag} at step {step}: {counts}, not {loads[tag][step]}")
    return problems, compared


def main():
    """Checks all runs given."""
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    bad = False
    for run in sys.argv[1:]:
        problems, compared = check(run)
        print(f"{run}: {compared} values compared, {len(problems)} problems")
        print("\n".join(problems[:20]), end="\n" if problems else "")
        bad |= bool(problems) or compared == 0
    sys.exit(bad)


if __name__ == "__main__":
    main()
