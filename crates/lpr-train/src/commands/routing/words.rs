//! The findings of `lpr-train routing` in words.

use std::fmt::Write as _;

use crate::routing::parallel::Prediction;
use crate::routing::specialization::{Information, LayerSpecialization};
use crate::routing::stability::LayerStability;
use crate::routing::summary::{Findings, Interval, Parallelism, Specialization};

/// At most so many steps are listed.
const LISTED_STEPS: usize = 12;
/// So many pairs of an expert and a class are listed for a layer.
const LISTED_PAIRS: usize = 3;

/// All findings, a section each.
pub fn describe(found: &Findings) -> String {
    let mut text = format!(
        "traces of {} training steps and {} evaluations; padding is left out everywhere\n",
        found.train_steps.len(),
        found.validation_steps.len()
    );
    if let Some(found) = &found.specialization {
        specialization(&mut text, found);
    }
    stability(&mut text, found);
    if let Some(found) = &found.expert_parallelism {
        parallelism(&mut text, found);
    }
    text.trim_end().to_owned()
}

fn specialization(text: &mut String, found: &Specialization) {
    let _ = writeln!(
        text,
        "\nspecialization: {} {} tokens, step {}\n\
         \x20      entropy of       token says about expert   class says about expert\n\
         layer  experts, bits    bits  of most  of chance    bits  of most  of chance",
        found.tokens, found.split, found.step
    );
    for layer in &found.layers {
        let most = (layer.experts.len() as f64).log2();
        let _ = writeln!(
            text,
            "{:>5}  {:>5.2} of {:>5.2} {}   {}",
            layer.layer,
            layer.expert_entropy_bits,
            most,
            information(&layer.token),
            information(&layer.class)
        );
    }
    text.push_str(
        "classes of tokens that experts take more often than others (share, times the usual)\n",
    );
    for layer in &found.layers {
        let _ = writeln!(text, "{:>5}  {}", layer.layer, strongest(layer, found));
    }
}

fn information(found: &Information) -> String {
    let normalized = found.normalized;
    let normalized = normalized.map_or_else(|| "-".to_owned(), percent);
    format!(
        "{:>7.3} {normalized:>8}  {:>9.3}",
        found.bits, found.by_chance_bits
    )
}

/// The pairs of an expert and a class with the largest parts in the information that the class has
/// about the expert.
fn strongest(layer: &LayerSpecialization, all: &Specialization) -> String {
    let mut pairs = Vec::new();
    for (expert, found) in layer.experts.iter().enumerate() {
        for (class, (&share, &lift)) in found.shares.iter().zip(&found.lifts).enumerate() {
            let part = found.choices as f64 * share * lift.log2();
            if lift > 1.0 {
                pairs.push((part, expert, class, share, lift));
            }
        }
    }
    pairs.sort_by(|a, b| b.0.total_cmp(&a.0));
    let pairs = pairs.iter().take(LISTED_PAIRS);
    let pair = |(_, expert, class, share, lift): &(f64, usize, usize, f64, f64)| {
        let class = all.classes[*class].name();
        format!("expert {expert}: {class} {} x{lift:.1}", percent(*share))
    };
    let pairs: Vec<String> = pairs.map(pair).collect();
    if pairs.is_empty() {
        "none".to_owned()
    } else {
        pairs.join(", ")
    }
}

fn stability(text: &mut String, found: &Findings) {
    let Some(last) = found.stability.last() else {
        text.push_str("\nstability: needs two evaluations or checkpoints with the same tokens\n");
        return;
    };
    text.push_str(
        "\nstability: choices for the same tokens that stay, and the same first expert\n\
         \x20              steps    overlap  by chance   first  by chance\n",
    );
    for Interval {
        from_step,
        to_step,
        mean,
        ..
    } in spaced(&found.stability)
    {
        row(text, &format!("{from_step} -> {to_step}"), mean);
    }
    let _ = writeln!(
        text,
        "layers from step {} to {}",
        last.from_step, last.to_step
    );
    for (layer, figures) in last.layers.iter().enumerate() {
        row(text, &format!("layer {layer}"), figures);
    }
    if found.not_comparable > 0 {
        let _ = writeln!(
            text,
            "{} evaluations had other tokens than the one before",
            found.not_comparable
        );
    }
}

fn row(text: &mut String, name: &str, found: &LayerStability) {
    let [overlap, chance, top, top_chance] = [
        found.overlap,
        found.overlap_by_chance,
        found.top_1,
        found.top_1_by_chance,
    ]
    .map(percent);
    let _ = writeln!(
        text,
        "{name:>20} {overlap:>10} {chance:>10} {top:>7} {top_chance:>10}"
    );
}

fn parallelism(text: &mut String, found: &Parallelism) {
    let what = if found.split == "train" {
        "micro-batches of the traced steps"
    } else {
        "batches of the evaluations"
    };
    let _ = writeln!(
        text,
        "\nexpert parallelism, {what}: slow-down by the busiest rank, and choices dropped at a \
         capacity factor"
    );
    let mut head = format!("{:>12}", "");
    for ranks in &found.ranks {
        let _ = write!(head, " {:>9}", format!("{ranks} ranks"));
    }
    for factor in &found.capacity_factors {
        let _ = write!(head, " {:>9}", format!("cf {factor}"));
    }
    let _ = writeln!(text, "{}", head.trim_end());
    for step in spaced(&found.steps) {
        costs(text, &format!("step {}", step.step), &step.costs);
    }
    for (layer, figures) in found.layers.iter().enumerate() {
        costs(text, &format!("layer {layer}"), figures);
    }
    costs(text, "all", &found.all);
    if !found.ranks_left_out.is_empty() {
        let ranks: Vec<String> = found.ranks_left_out.iter().map(usize::to_string).collect();
        let _ = writeln!(
            text,
            "left out, because they do not divide the experts: {} ranks",
            ranks.join(", ")
        );
    }
}

fn costs(text: &mut String, name: &str, found: &Prediction) {
    let _ = write!(text, "{name:>12}");
    for slow_down in &found.slow_down {
        let _ = write!(text, " {slow_down:>9.2}");
    }
    for &rate in &found.drop_rate {
        let _ = write!(text, " {:>9}", percent(rate));
    }
    text.push('\n');
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// At most [`LISTED_STEPS`] of `items`, evenly spaced, the first and the last among them.
fn spaced<T>(items: &[T]) -> impl Iterator<Item = &T> {
    let shown = items.len().min(LISTED_STEPS);
    (0..shown).map(move |number| &items[number * (items.len() - 1) / (shown - 1).max(1)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lists_are_thinned_and_keep_their_ends() {
        for length in [0, 1, 2, 12, 13, 100] {
            let items: Vec<usize> = (0..length).collect();
            let shown: Vec<usize> = spaced(&items).copied().collect();
            assert_eq!(shown.len(), length.min(LISTED_STEPS));
            assert!(shown.windows(2).all(|w| w[0] < w[1]), "{shown:?}");
            assert_eq!((shown.first(), shown.last()), (items.first(), items.last()));
        }
    }
}
