//! What experts specialize in: the entropy of their load, how much a token says about its experts,
//! and which classes of tokens each of them takes.
//!
//! All figures are about pairs of a token and a slot: a token with `top_k` experts is `top_k` pairs
//! `(t, e)`. Padding is left out. `n` is the number of pairs, `n(x)` that of the pairs with `x`,
//! logarithms are to the base 2.

use std::collections::BTreeMap;

use lpr_model::random::Stream;
use serde::Serialize;

use super::classes::TokenClass;
use super::trace::Recording;

/// Shuffles that the information by chance is the mean of.
const SHUFFLES: u64 = 8;

/// What one layer's experts specialize in.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerSpecialization {
    /// Index among the layers with experts.
    pub layer: usize,
    /// `H(E) = -sum_e n(e)/n log(n(e)/n)`; `log num_experts` if all experts are loaded alike.
    pub expert_entropy_bits: f64,
    /// Token ids and experts.
    pub token: Information,
    /// Classes of tokens and experts.
    pub class: Information,
    /// The experts, one by one.
    pub experts: Vec<ExpertClasses>,
}

/// How much one thing says about the experts of a token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Information {
    /// `I(T; E) = sum_te n(t,e)/n log(n(t,e) n / (n(t) n(e)))` as counted, which is too much where
    /// tokens are rare.
    pub plug_in_bits: f64,
    /// The mean of the same after the choices were dealt to the tokens at random, which leaves the
    /// loads and frequencies as they are: what is counted although there is nothing.
    pub by_chance_bits: f64,
    /// `plug_in_bits - by_chance_bits`, at least 0.
    pub bits: f64,
    /// `H(E) - log top_k`, reached when a token always has the same experts: the `top_k` experts of
    /// a token are different ones, so `H(E | T)` is never below `log top_k`.
    pub most_bits: f64,
    /// `bits / (most_bits - by_chance_bits)`: 0 by chance, 1 if the experts are a function of it.
    /// Absent where chance alone reaches the most.
    pub normalized: Option<f64>,
}

/// Which classes of tokens an expert takes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ExpertClasses {
    /// Its pairs.
    pub choices: u64,
    /// Share of each class in them, in the order of [`TokenClass::ALL`]; 0 without choices.
    pub shares: Vec<f64>,
    /// The share over that of the class in all pairs: 2 means twice as often as a random expert
    /// would. 0 for a class without tokens.
    pub lifts: Vec<f64>,
}

/// The specialization of `layer`; `classes` as [`super::classes::classify`] finds them.
pub fn layer(recording: &Recording, layer: usize, classes: &[TokenClass]) -> LayerSpecialization {
    let rows: Vec<&[u16]> = recording.chosen(layer).collect();
    let mut loads = vec![0_u64; recording.num_experts];
    for &expert in rows.iter().copied().flatten() {
        loads[usize::from(expert)] += 1;
    }
    let entropy = entropy_bits(&loads);
    let ids = groups(recording.tokens());
    let by_class = groups(classes.iter().map(|class| class.index() as u32));
    LayerSpecialization {
        layer,
        expert_entropy_bits: entropy,
        token: information(&rows, &ids, &loads),
        class: information(&rows, &by_class, &loads),
        experts: expert_classes(&rows, classes, &loads),
    }
}

/// Shannon entropy of the shares of `counts`.
fn entropy_bits(counts: &[u64]) -> f64 {
    let total: u64 = counts.iter().sum();
    // `-p log p` summed, without minus zero for a single share.
    let part = |&count: &u64| count as f64 * (total as f64 / count as f64).log2();
    let parts = counts.iter().filter(|&&count| count > 0).map(part);
    parts.sum::<f64>() / total.max(1) as f64
}

/// The places of equal values.
fn groups(values: impl Iterator<Item = u32>) -> Vec<Vec<usize>> {
    let mut places: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    for (place, value) in values.enumerate() {
        places.entry(value).or_default().push(place);
    }
    places.into_values().collect()
}

fn information(rows: &[&[u16]], groups: &[Vec<usize>], loads: &[u64]) -> Information {
    let entropy = entropy_bits(loads);
    let Some(top_k) = rows.first().map(|row| row.len()) else {
        return Information::default();
    };
    let in_order: Vec<usize> = (0..rows.len()).collect();
    let counted = |order: &[usize]| {
        (entropy - conditional_entropy_bits(rows, groups, order, loads.len())).max(0.0)
    };
    let plug_in_bits = counted(&in_order);
    let by_chance = (0..SHUFFLES).map(|number| counted(&shuffled(rows.len(), number)));
    let by_chance_bits = by_chance.sum::<f64>() / SHUFFLES as f64;
    let most_bits = (entropy - (top_k as f64).log2()).max(0.0);
    let bits = (plug_in_bits - by_chance_bits).max(0.0);
    let room = most_bits - by_chance_bits;
    Information {
        plug_in_bits,
        by_chance_bits,
        bits,
        most_bits,
        normalized: (room > 1e-9).then(|| bits / room),
    }
}

/// `H(E | T)` when the token at `place` has the choices of `rows[order[place]]`.
fn conditional_entropy_bits(
    rows: &[&[u16]],
    groups: &[Vec<usize>],
    order: &[usize],
    num_experts: usize,
) -> f64 {
    let mut counts = vec![0_u64; num_experts];
    let (mut sum, mut pairs) = (0.0, 0_u64);
    for group in groups {
        let chosen = || group.iter().flat_map(|&place| rows[order[place]]);
        let mut total = 0_u64;
        for &expert in chosen() {
            counts[usize::from(expert)] += 1;
            total += 1;
        }
        for &expert in chosen() {
            let count = std::mem::take(&mut counts[usize::from(expert)]);
            if count > 0 {
                sum += count as f64 * (total as f64 / count as f64).log2();
            }
        }
        pairs += total;
    }
    sum / pairs.max(1) as f64
}

/// The numbers below `length` in a random order, the same one for the same `number`.
fn shuffled(length: usize, number: u64) -> Vec<usize> {
    let stream = Stream::new(0).child("shuffled choices").index(number);
    let mut order: Vec<usize> = (0..length).collect();
    for last in (1..length).rev() {
        let other = (stream.index(last as u64).uniform() * (last + 1) as f64) as usize;
        order.swap(last, other.min(last));
    }
    order
}

fn expert_classes(rows: &[&[u16]], classes: &[TokenClass], loads: &[u64]) -> Vec<ExpertClasses> {
    let num_classes = TokenClass::ALL.len();
    let mut counts = vec![vec![0_u64; num_classes]; loads.len()];
    let mut base = vec![0_u64; num_classes];
    for (row, class) in rows.iter().zip(classes) {
        for &expert in *row {
            counts[usize::from(expert)][class.index()] += 1;
            base[class.index()] += 1;
        }
    }
    let pairs: u64 = base.iter().sum();
    let expert = |(counts, &choices): (Vec<u64>, &u64)| {
        let share = |count: &u64| *count as f64 / choices.max(1) as f64;
        let lift = |(count, &base): (&u64, &u64)| {
            let usual = base as f64 / pairs.max(1) as f64;
            if base > 0 { share(count) / usual } else { 0.0 }
        };
        ExpertClasses {
            choices,
            shares: counts.iter().map(share).collect(),
            lifts: counts.iter().zip(&base).map(lift).collect(),
        }
    };
    counts.into_iter().zip(loads).map(expert).collect()
}

#[cfg(test)]
mod tests {
    use super::super::trace::tests::trace;
    use super::*;

    fn of(ids: &[u32], chosen: &[Vec<u16>], num_experts: usize) -> LayerSpecialization {
        let recording = trace(ids, &vec![true; ids.len()], chosen, num_experts);
        let class = |&id: &u32| TokenClass::ALL[id as usize % 2];
        let classes: Vec<_> = ids.iter().map(class).collect();
        layer(&recording, 0, &classes)
    }

    #[test]
    fn independent_experts_share_no_information_with_tokens() {
        // Every token meets every expert equally often.
        let ids: Vec<u32> = (0..64).map(|place| place % 4).collect();
        let chosen: Vec<_> = (0..64).map(|place| vec![(place / 4 % 4) as u16]).collect();
        let found = of(&ids, &chosen, 4);
        let none = Information {
            most_bits: 2.0,
            normalized: Some(0.0),
            ..Information::default()
        };
        for found in [found.token, found.class] {
            let by_chance_bits = found.by_chance_bits;
            assert!(by_chance_bits > 0.0 && by_chance_bits < 0.2);
            let none = Information {
                by_chance_bits,
                ..none
            };
            assert_eq!(found, none);
        }
        for expert in &found.experts {
            assert_eq!(expert.choices, 16);
            assert_eq!((expert.shares[0], expert.lifts[0]), (0.5, 1.0));
            assert_eq!((expert.shares[2], expert.lifts[2]), (0.0, 0.0));
        }
    }

    #[test]
    fn experts_that_follow_from_the_token_have_all_its_information() {
        let ids: Vec<u32> = (0..400).map(|place| place % 4).collect();
        let one: Vec<_> = ids.iter().map(|&id| vec![id as u16]).collect();
        let found = of(&ids, &one, 4);
        let bits = [found.expert_entropy_bits, found.token.plug_in_bits];
        assert_eq!((bits, found.token.most_bits), ([2.0; 2], 2.0));
        assert_eq!(found.token.normalized, Some(1.0));
        assert!((found.token.bits - 2.0).abs() < 0.05, "{:?}", found.token);
        // Even ids are of one class, odd ones of the other: one of two bits, twice the base rate.
        assert_eq!(
            (found.class.plug_in_bits, found.class.most_bits),
            (1.0, 2.0)
        );
        assert_eq!(found.experts[1].shares[..2], [0.0, 1.0]);
        assert_eq!(found.experts[1].lifts[..2], [0.0, 2.0]);
        // Two experts each: a token leaves one bit open, whichever it is.
        let two: Vec<_> = ids
            .iter()
            .map(|&id| vec![id as u16, id as u16 + 4])
            .collect();
        let found = of(&ids, &two, 8);
        assert_eq!(
            (found.expert_entropy_bits, found.token.most_bits),
            (3.0, 2.0)
        );
        let token = (found.token.plug_in_bits, found.token.normalized);
        assert_eq!(token, (2.0, Some(1.0)));
    }

    #[test]
    fn what_rare_tokens_seem_to_say_by_chance_is_taken_away() {
        // 512 tokens, each seen twice, experts without any relation to them.
        let ids: Vec<u32> = (0..1024).map(|place| place / 2).collect();
        let deal = |place: u64| (Stream::new(7).index(place).uniform() * 8.0) as u16;
        let chosen: Vec<_> = (0..1024).map(|place| vec![deal(place)]).collect();
        let found = of(&ids, &chosen, 8).token;
        assert!(found.plug_in_bits > 1.8, "{found:?}");
        assert!((found.plug_in_bits - found.by_chance_bits).abs() < 0.1);
        assert!(found.normalized.expect("room") < 0.1, "{found:?}");
        // Tokens that are all seen once say everything, so nothing can be said about them.
        let once: Vec<u32> = (0..1024).collect();
        assert_eq!(of(&once, &chosen, 8).token.normalized, None);
    }

    #[test]
    fn information_is_the_sum_of_its_definition() {
        // n(t, e): token 0 has expert 0 three times and 1 once, token 1 has expert 1 twice.
        let ids = [0, 0, 0, 0, 1, 1];
        let chosen = [0, 0, 0, 1, 1, 1].map(|expert| vec![expert]);
        let found = of(&ids, &chosen, 2);
        let part = |joint: f64, token: f64, expert: f64| {
            joint / 6.0 * (joint * 6.0 / (token * expert)).log2()
        };
        let wanted = part(3.0, 4.0, 3.0) + part(1.0, 4.0, 3.0) + part(2.0, 2.0, 3.0);
        assert!(
            (found.token.plug_in_bits - wanted).abs() < 1e-12,
            "{wanted}"
        );
        assert_eq!(
            (found.expert_entropy_bits, found.token.most_bits),
            (1.0, 1.0)
        );
    }

    #[test]
    fn a_shuffle_deals_every_place_once_and_the_same_every_time() {
        let order = shuffled(100, 3);
        assert_eq!(order, shuffled(100, 3));
        assert_ne!(order, shuffled(100, 4));
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..100).collect::<Vec<_>>());
        assert!(
            order
                .iter()
                .enumerate()
                .filter(|(at, to)| at == *to)
                .count()
                < 10
        );
    }
}
