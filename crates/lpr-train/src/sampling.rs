//! Which token comes next.

/// How a token is chosen from the logits. Names and order of the steps are those of `transformers`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Logits are divided by it; at 0 the likeliest token is taken.
    pub temperature: f64,
    /// Only the likeliest ones may be chosen, so many; 0 for all.
    pub top_k: usize,
    /// Of these, only the likeliest that together have at least this share of the probability.
    pub top_p: f64,
}

impl Sampling {
    /// The index of the chosen logit, for a number from `[0, 1)`. Of equal logits the first counts as
    /// the likeliest. `None` if there is none, or one is not a number or infinite.
    pub fn choose(&self, logits: &[f32], uniform: f64) -> Option<usize> {
        if !logits.iter().all(|logit| logit.is_finite()) {
            return None;
        }
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
        let likeliest = *order.first()?;
        if self.temperature == 0.0 {
            return Some(likeliest);
        }
        if self.top_k > 0 {
            order.truncate(self.top_k);
        }
        let scaled = |index: usize| f64::from(logits[index]) / self.temperature;
        let weights: Vec<f64> = order
            .iter()
            .map(|&index| (scaled(index) - scaled(likeliest)).exp())
            .collect();
        let share = self.top_p * weights.iter().sum::<f64>();
        let mut sum = 0.0;
        // How many it takes, and what they sum to.
        let needed = weights.iter().take_while(|&&weight| {
            let is_needed = sum < share;
            sum += if is_needed { weight } else { 0.0 };
            is_needed
        });
        let needed = needed.count().max(1);
        let total: f64 = weights[..needed].iter().sum();
        let mut left = uniform * total;
        let chosen = weights[..needed].iter().position(|weight| {
            left -= weight;
            left < 0.0
        });
        // Rounding may leave a trifle after the last one.
        Some(order[chosen.unwrap_or(needed - 1)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Sampling = Sampling {
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
    };

    /// Probabilities 0.1, 0.4, 0.3, 0.2.
    fn logits() -> Vec<f32> {
        [0.1_f32, 0.4, 0.3, 0.2].map(f32::ln).to_vec()
    }

    /// How often each of the four is chosen, of 1000 evenly spread numbers.
    fn counts(sampling: Sampling) -> [usize; 4] {
        let mut counts = [0; 4];
        for i in 0..1000 {
            let uniform = (f64::from(i) + 0.5) / 1000.0;
            counts[sampling.choose(&logits(), uniform).expect("finite")] += 1;
        }
        counts
    }

    #[test]
    fn every_token_has_its_probability() {
        assert_eq!(counts(ALL), [100, 400, 300, 200]);
        // Squares: 0.16, 0.09, 0.04, 0.01 of 0.3, in the order in which they are added up.
        let temperature = 0.5;
        assert_eq!(counts(Sampling { temperature, ..ALL }), [33, 533, 300, 134]);
    }

    #[test]
    fn temperature_zero_takes_the_likeliest_and_the_first_of_equals() {
        let greedy = Sampling {
            temperature: 0.0,
            ..ALL
        };
        assert_eq!(counts(greedy), [0, 1000, 0, 0]);
        assert_eq!(greedy.choose(&[1.0, 2.0, 2.0], 0.9), Some(1));
    }

    #[test]
    fn the_unlikely_are_left_out() {
        // 4 : 3 of the two likeliest.
        assert_eq!(counts(Sampling { top_k: 2, ..ALL }), [0, 571, 429, 0]);
        // 0.4 + 0.3 reach 0.65; 0.4 alone reaches 0.4 and anything below.
        assert_eq!(counts(Sampling { top_p: 0.65, ..ALL }), [0, 571, 429, 0]);
        assert_eq!(counts(Sampling { top_p: 0.3, ..ALL }), [0, 1000, 0, 0]);
        let both = Sampling {
            top_k: 3,
            top_p: 0.5,
            ..ALL
        };
        // 0.4 of 0.9 is not half.
        assert_eq!(counts(both), [0, 571, 429, 0]);
    }

    #[test]
    fn what_is_no_number_is_not_chosen_from() {
        assert_eq!(ALL.choose(&[0.0, f32::NAN], 0.5), None);
        assert_eq!(ALL.choose(&[0.0, f32::INFINITY], 0.5), None);
        assert_eq!(ALL.choose(&[], 0.5), None);
        assert_eq!(ALL.choose(&[-1e30, 0.0], 0.999_999), Some(1));
    }
}
