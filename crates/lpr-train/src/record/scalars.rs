//! The numbers of a record under tags with slashes, for sinks that know nothing but numbers.

use super::{BalanceRecord, EvalRecord, StepRecord};

/// Those of a logged step.
pub fn of_step(record: &StepRecord) -> Vec<(String, f64)> {
    let mut scalars = named(&[
        ("train/loss_ce", record.loss_ce),
        ("train/loss_total", record.loss_total),
        ("train/grad_norm", record.grad_norm),
        ("train/lr", record.lr),
        ("train/epoch", record.epoch as f64),
        ("train/tokens_seen", record.tokens_seen as f64),
    ]);
    let aux = record.aux.iter();
    scalars.extend(aux.map(|(name, value)| (format!("aux/{name}"), *value)));
    scalars.extend(named(&[
        ("speed/tok_s", record.tok_s),
        ("speed/data_wait_ms", record.data_wait_ms),
        ("speed/step_time_ms", record.step_time_ms),
    ]));
    let stability = &record.stability;
    scalars.extend(named(&[
        ("train/nonfinite_total", stability.nonfinite_total as f64),
        ("train/spikes_total", stability.spikes_total as f64),
        ("train/skipped_total", stability.skipped_total as f64),
        ("train/rollbacks_total", stability.rollbacks_total as f64),
    ]));
    balance("moe", &record.balance, &mut scalars);
    scalars
}

/// Those of an evaluation.
pub fn of_evaluation(record: &EvalRecord) -> Vec<(String, f64)> {
    let eval = &record.eval;
    let mut scalars = named(&[
        ("eval/loss", eval.loss),
        ("eval/loss_batch_mean", eval.loss_batch_mean),
        ("eval/perplexity", eval.perplexity),
        ("eval/tokens", eval.tokens as f64),
    ]);
    balance("eval", &eval.balance, &mut scalars);
    scalars
}

fn named(scalars: &[(&str, f64)]) -> Vec<(String, f64)> {
    let named = scalars.iter();
    named.map(|&(tag, value)| (tag.to_owned(), value)).collect()
}

fn balance(section: &str, balance: &BalanceRecord, scalars: &mut Vec<(String, f64)>) {
    let mut add = |name: &str, value: f64| scalars.push((format!("{section}/{name}"), value));
    add("gini", balance.gini);
    add("min_max_ratio", balance.min_max_ratio);
    add("dead_experts", balance.dead_experts as f64);
    add("gini_with_padding", balance.gini_with_padding);
    add(
        "min_max_ratio_with_padding",
        balance.min_max_ratio_with_padding,
    );
    if let Some(smoothed) = &balance.smoothed {
        add("gini_ema", smoothed.gini_ema);
        add("min_max_ratio_ema", smoothed.min_max_ratio_ema);
        add("gini_ema_soft", smoothed.gini_ema_soft);
        add("min_max_ratio_ema_soft", smoothed.min_max_ratio_ema_soft);
    }
    for layer in &balance.layers {
        let mut add = |name: &str, value| add(&format!("layer_{:02}/{name}", layer.layer), value);
        add("gini", layer.gini);
        add("min_max_ratio", layer.min_max_ratio);
        add("cv", layer.cv);
        add("max_over_mean", layer.max_over_mean);
        add("normalized_entropy", layer.normalized_entropy);
        add("dead_experts", layer.dead_experts as f64);
    }
}
