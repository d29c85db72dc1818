//! Whether the same tokens keep their experts from one checkpoint to the next.

use serde::Serialize;

use super::trace::Recording;

/// How much of a layer's choices for the same tokens stayed, padding left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct LayerStability {
    /// Mean over the tokens of `|A and B| / top_k`, with `A` and `B` the experts of a token before
    /// and after.
    pub overlap: f64,
    /// The overlap of independent choices with the same loads,
    /// `sum_e a(e) b(e) / (tokens^2 top_k)`, with `a(e)` and `b(e)` the tokens that chose `e` before
    /// and after.
    pub overlap_by_chance: f64,
    /// Share of the tokens whose expert with the largest weight (the first of several) is the same.
    pub top_1: f64,
    /// The share that independent choices with the same frequencies of that expert would have.
    pub top_1_by_chance: f64,
}

impl LayerStability {
    /// The mean of each figure.
    pub fn mean(layers: &[Self]) -> Self {
        let mean = |figure: fn(&Self) -> f64| {
            layers.iter().map(figure).sum::<f64>() / layers.len().max(1) as f64
        };
        Self {
            overlap: mean(|layer| layer.overlap),
            overlap_by_chance: mean(|layer| layer.overlap_by_chance),
            top_1: mean(|layer| layer.top_1),
            top_1_by_chance: mean(|layer| layer.top_1_by_chance),
        }
    }
}

/// Whether both recordings are of the same positions, so that they can be compared.
pub fn is_comparable(before: &Recording, after: &Recording) -> bool {
    let shape = |r: &Recording| (r.num_experts, r.top_k, r.layers.len());
    shape(before) == shape(after)
        && before.token_ids == after.token_ids
        && before.position_ids == after.position_ids
        && before.is_token == after.is_token
}

/// The stability of `layer` between two recordings that [`is_comparable`].
pub fn layer(before: &Recording, after: &Recording, layer: usize) -> LayerStability {
    let num_experts = before.num_experts;
    let (mut stayed, mut same_top, mut tokens) = (0_u64, 0_u64, 0_u64);
    let mut loads = [vec![0_u64; num_experts], vec![0_u64; num_experts]];
    let mut tops = loads.clone();
    let pairs = before.chosen(layer).zip(after.chosen(layer));
    let pairs = pairs.zip(top(before, layer).zip(top(after, layer)));
    for ((old, new), (old_top, new_top)) in pairs {
        tokens += 1;
        stayed += old.iter().filter(|&expert| new.contains(expert)).count() as u64;
        same_top += u64::from(old_top == new_top);
        for (loads, row) in loads.iter_mut().zip([old, new]) {
            for &expert in row {
                loads[usize::from(expert)] += 1;
            }
        }
        tops[0][usize::from(old_top)] += 1;
        tops[1][usize::from(new_top)] += 1;
    }
    let (tokens, top_k) = (tokens.max(1) as f64, before.top_k as f64);
    let product = |[old, new]: &[Vec<u64>; 2]| -> f64 {
        let parts = old.iter().zip(new);
        let parts = parts.map(|(&old, &new)| old as f64 / tokens * (new as f64 / tokens));
        parts.sum()
    };
    LayerStability {
        overlap: stayed as f64 / (tokens * top_k),
        overlap_by_chance: product(&loads) / top_k,
        top_1: same_top as f64 / tokens,
        top_1_by_chance: product(&tops),
    }
}

/// The expert with the largest weight for each token, padding left out.
fn top(recording: &Recording, layer: usize) -> impl Iterator<Item = u16> {
    let top_k = recording.top_k;
    let layer = &recording.layers[layer];
    let rows = layer
        .experts
        .chunks_exact(top_k)
        .zip(layer.weights.chunks_exact(top_k));
    let kept = rows
        .zip(&recording.is_token)
        .filter(|(_, is_token)| **is_token);
    kept.map(|((experts, weights), _)| {
        let better = |best: usize, slot: usize| {
            if weights[slot] > weights[best] {
                slot
            } else {
                best
            }
        };
        experts[(1..experts.len()).fold(0, better)]
    })
}

#[cfg(test)]
mod tests {
    use super::super::trace::tests::trace;
    use super::*;

    const IDS: [u32; 5] = [7, 8, 9, 7, 0];
    const IS_TOKEN: [bool; 5] = [true, true, true, true, false];

    fn recording(chosen: [[u16; 2]; 5]) -> Recording {
        trace(&IDS, &IS_TOKEN, &chosen.map(Vec::from), 4)
    }

    #[test]
    fn what_stays_is_counted_against_chance() {
        let before = recording([[0, 1], [0, 1], [2, 3], [2, 3], [0, 1]]);
        // In order: both stay, exchanged; one stays; none; both.
        let after = recording([[1, 0], [0, 2], [0, 1], [2, 3], [2, 3]]);
        let found = layer(&before, &after, 0);
        let wanted = LayerStability {
            overlap: 5.0 / 8.0,
            // Loads before: 2 2 2 2, after: 3 2 2 1, of four tokens.
            overlap_by_chance: (6.0 + 4.0 + 4.0 + 2.0) / 16.0 / 2.0,
            // Equal weights: the first one counts. Before 0 0 2 2, after 1 0 0 2.
            top_1: 0.5,
            top_1_by_chance: (2.0 * 2.0 + 2.0 * 1.0) / 16.0,
        };
        assert_eq!(found, wanted);
        let same = layer(&before, &before, 0);
        assert_eq!((same.overlap, same.top_1), (1.0, 1.0));
    }

    #[test]
    fn the_top_expert_has_the_largest_weight() {
        let mut before = recording([[0, 1], [0, 1], [2, 3], [2, 3], [0, 1]]);
        let after = before.clone();
        before.layers[0].weights = vec![0.2, 0.8, 0.8, 0.2, 0.5, 0.5, 0.1, 0.9, 0.0, 1.0];
        assert_eq!(top(&before, 0).collect::<Vec<_>>(), [1, 0, 2, 3]);
        let found = layer(&before, &after, 0);
        assert_eq!((found.overlap, found.top_1), (1.0, 0.5));
    }

    #[test]
    fn other_tokens_cannot_be_compared() {
        let before = recording([[0, 1], [0, 1], [2, 3], [2, 3], [0, 1]]);
        let mut after = before.clone();
        after.layers[0].experts[0] = 3;
        assert!(is_comparable(&before, &after));
        after.token_ids[1] += 1;
        assert!(!is_comparable(&before, &after));
    }
}
