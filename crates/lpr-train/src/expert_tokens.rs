//! Which tokens each expert takes, counted on a bounded sample of the validation text.

use std::collections::HashMap;

use lpr_data::{TokenBatch, Tokenizer};
use lpr_model::Routing;
use serde::{Deserialize, Serialize};

/// Tokens that are counted, padding left out. Bounds the size of the table: a token adds at most
/// `top_k` entries per layer.
pub const SAMPLE_TOKENS: u64 = 65_536;
/// Tokens listed for each expert.
const LISTED: usize = 12;
/// A token that was seen less often is not listed: its choices say nothing yet.
const LEAST_SEEN: u64 = 4;

/// Choices by token and expert, layer by layer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenChoices {
    /// Tokens counted.
    tokens: u64,
    /// How often each token id was seen.
    seen: HashMap<u32, u64>,
    /// One per layer with experts.
    layers: Vec<LayerChoices>,
}

#[derive(Clone, Debug, PartialEq)]
struct LayerChoices {
    num_experts: usize,
    by_pair: HashMap<(u32, usize), u64>,
}

impl TokenChoices {
    /// Adds the tokens of a batch and what was chosen for them, unless the sample is full.
    pub fn add(&mut self, batch: &TokenBatch, routings: &[Routing]) {
        if self.tokens >= SAMPLE_TOKENS {
            return;
        }
        let left = (SAMPLE_TOKENS - self.tokens) as usize;
        let is_token = batch.is_token.iter().enumerate();
        let positions: Vec<usize> = is_token
            .filter_map(|(position, &is)| is.then_some(position))
            .take(left)
            .collect();
        for &position in &positions {
            *self.seen.entry(batch.input_ids[position]).or_default() += 1;
        }
        self.tokens += positions.len() as u64;
        for (layer, routing) in routings.iter().enumerate() {
            let top_k = routing.expert_indices.dims()[1];
            let chosen = routing.expert_indices.clone().into_data();
            let chosen: Vec<usize> = chosen.iter::<u64>().map(|expert| expert as usize).collect();
            let num_experts = routing.router_logits.dims()[1];
            if self.layers.len() == layer {
                self.layers.push(LayerChoices {
                    num_experts,
                    by_pair: HashMap::new(),
                });
            }
            let by_pair = &mut self.layers[layer].by_pair;
            for &position in &positions {
                let id = batch.input_ids[position];
                for &expert in &chosen[position * top_k..][..top_k] {
                    *by_pair.entry((id, expert)).or_default() += 1;
                }
            }
        }
    }

    /// The tokens that say most about each expert, spelled out.
    pub fn summary(&self, step: u64, tokenizer: &Tokenizer) -> ExpertTokens {
        let layers = self.layers.iter().map(|layer| self.layer(layer, tokenizer));
        ExpertTokens {
            step,
            tokens: self.tokens,
            layers: layers.collect(),
        }
    }

    /// Tokens `t` of an expert `e` by their part in the mutual information of both,
    /// `n(t, e) ln(n(t, e) n / (n(t) n(e)))`, where `n` counts choices.
    fn layer(&self, layer: &LayerChoices, tokenizer: &Tokenizer) -> Vec<Vec<TokenShare>> {
        let mut by_expert = vec![0_u64; layer.num_experts];
        for (&(_, expert), &count) in &layer.by_pair {
            by_expert[expert] += count;
        }
        let total: u64 = by_expert.iter().sum();
        let top_k = total as f64 / self.tokens.max(1) as f64;
        let mut found: Vec<Vec<(f64, u32, u64)>> = vec![Vec::new(); layer.num_experts];
        for (&(id, expert), &count) in &layer.by_pair {
            let seen = self.seen[&id];
            let expected = seen as f64 * top_k * by_expert[expert] as f64 / total as f64;
            let part = count as f64 * (count as f64 / expected).ln();
            if seen >= LEAST_SEEN && part > 0.0 {
                found[expert].push((part, id, count));
            }
        }
        let list = |mut found: Vec<(f64, u32, u64)>| {
            found.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            found.truncate(LISTED);
            let share = |(_, id, count)| TokenShare {
                id,
                // A part of a character has no text of its own; neither has an id that the
                // tokenizer refuses, and the page shows its number.
                text: tokenizer.decode(&[id]).unwrap_or_default(),
                count,
                share: count as f64 / self.seen[&id] as f64,
            };
            found.into_iter().map(share).collect()
        };
        found.into_iter().map(list).collect()
    }
}

/// What the experts took in an evaluation; the content of `expert_tokens.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ExpertTokens {
    /// Optimizer steps done.
    pub step: u64,
    /// Tokens that were counted, from the start of the validation data.
    pub tokens: u64,
    /// By layer and expert: the tokens that say most about it, the first one most.
    pub layers: Vec<Vec<Vec<TokenShare>>>,
}

/// A token of an expert.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenShare {
    /// Its id.
    pub id: u32,
    /// Its text.
    pub text: String,
    /// How often the expert was chosen for it.
    pub count: u64,
    /// The same, of the times the token was seen.
    pub share: f64,
}

#[cfg(test)]
pub(crate) mod tests {
    use burn::tensor::{Device, Int, Tensor, TensorData};
    use lpr_data::DataPosition;

    use super::*;

    /// One row, one document.
    pub(crate) fn batch(ids: &[u32], is_token: &[bool]) -> TokenBatch {
        TokenBatch {
            num_rows: 1,
            sequence_length: ids.len(),
            input_ids: ids.to_vec(),
            targets: vec![0; ids.len()],
            is_token: is_token.to_vec(),
            document_ids: vec![0; ids.len()],
            position_ids: (0..ids.len() as u32).collect(),
            num_targets: ids.len(),
            position: DataPosition::default(),
        }
    }

    /// One choice per position among three experts.
    fn routing(chosen: &[i32]) -> Routing {
        let device = Device::flex();
        let n = chosen.len();
        let indices: Tensor<2, Int> =
            Tensor::from_data(TensorData::new(chosen.to_vec(), [n, 1]), &device);
        Routing {
            router_logits: Tensor::zeros([n, 3], &device),
            expert_indices: indices,
            routing_weights: Tensor::ones([n, 1], &device),
            residual: None,
            terms: Vec::new(),
            prototype_sums: None,
        }
    }

    #[test]
    fn an_expert_lists_the_tokens_it_takes_more_often_than_others() {
        let (a, b, pad) = (u32::from(b'a'), u32::from(b'b'), u32::from(b'c'));
        let mut choices = TokenChoices::default();
        // Expert 0 takes `a` but once, expert 1 takes `b` and that one `a`; expert 2 nothing.
        let batch = batch(
            &[a, a, a, a, b, b, b, b, pad],
            &[true, true, true, true, true, true, true, true, false],
        );
        choices.add(&batch, &[routing(&[0, 0, 0, 1, 1, 1, 1, 1, 2])]);
        let tokenizer = Tokenizer::open("bytes").expect("built in");
        let found = choices.summary(7, &tokenizer);
        assert_eq!((found.step, found.tokens), (7, 8));
        let expert = |text: &str, id, count, share| {
            let text = text.to_owned();
            vec![TokenShare {
                id,
                text,
                count,
                share,
            }]
        };
        assert_eq!(
            found.layers,
            [[expert("a", a, 3, 0.75), expert("b", b, 4, 1.0), vec![]]]
        );
    }

    #[test]
    fn the_sample_is_bounded() {
        let mut choices = TokenChoices::default();
        let length = SAMPLE_TOKENS as usize - 3;
        let batch = batch(&vec![1; length], &vec![true; length]);
        for _ in 0..3 {
            choices.add(&batch, &[routing(&vec![0; length])]);
        }
        assert_eq!(choices.tokens, SAMPLE_TOKENS);
        assert_eq!(choices.layers[0].by_pair[&(1, 0)], SAMPLE_TOKENS);
    }
}
