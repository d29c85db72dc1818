//! Documents that share a row do not see each other, in every family and packing, unless they may.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::sync::Arc;

use burn::tensor::{Device, Int, Tensor};
use lpr_data::{DataConfig, DataLoader, DataPosition, Packing, Split, TokenBatch, Tokenizer};
use lpr_model::{CausalLm, FamilyConfig, ModelInput, RouterConfig};
use lpr_train::batch::MicroBatch;
use serde_json::json;

const SEQUENCE: usize = 96;

/// A small decoder of every registered family.
fn families() -> Vec<FamilyConfig> {
    let family = |name: &&str| {
        let mut config = json!({
            "family": name, "vocab_size": 257, "hidden_size": 24, "num_hidden_layers": 2,
            "num_attention_heads": 4, "moe_intermediate_size": 10, "num_experts": 5, "top_k": 2,
            "initializer_range": 0.3,
        });
        let own = match *name {
            "qwen3_moe" | "mixtral" => json!({ "num_key_value_heads": 2, "head_dim": 6 }),
            "deepseek_v3" => json!({
                "q_lora_rank": 12, "kv_lora_rank": 10, "qk_nope_head_dim": 6,
                "qk_rope_head_dim": 4, "v_head_dim": 5, "num_shared_experts": 1,
                "first_k_dense_replace": 1, "intermediate_size": 14,
            }),
            other => panic!("family {other} is not tested"),
        };
        for (key, value) in own.as_object().unwrap() {
            config[key] = value.clone();
        }
        serde_json::from_value(config).unwrap()
    };
    FamilyConfig::NAMES.iter().map(family).collect()
}

fn batch(packing: Packing, document_mask: bool) -> TokenBatch {
    let corpus = tempfile::tempdir().unwrap();
    support::write_corpus(corpus.path());
    let config = DataConfig {
        packing,
        document_mask,
        sequence_length: SEQUENCE,
        ..DataConfig::new(vec![corpus.path().display().to_string()])
    };
    let tokenizer = Arc::new(Tokenizer::open("bytes").unwrap());
    let start = DataPosition::default();
    let mut loader = DataLoader::open(&config, Split::Train, 4, tokenizer, &start).unwrap();
    loader.next_batch().unwrap().unwrap()
}

fn hidden(model: &CausalLm, input: &ModelInput) -> Vec<f32> {
    let output = model.forward(input, None);
    output.hidden_states.into_data().iter::<f32>().collect()
}

/// Some tokens as a row of their own, with nothing to tell apart.
fn alone(ids: &[u32], device: &Device) -> ModelInput {
    let row = |values: Vec<i32>| -> Tensor<2, Int> {
        Tensor::<1, Int>::from_ints(values.as_slice(), device).reshape([1, ids.len()])
    };
    ModelInput {
        input_ids: row(ids.iter().map(|&id| id as i32).collect()),
        position_ids: row((0..ids.len() as i32).collect()),
        mask: None,
    }
}

/// Where each document of a batch lies: (first position, tokens), padding left out.
fn documents(batch: &TokenBatch) -> Vec<(usize, usize)> {
    let mut found: Vec<(usize, usize)> = Vec::new();
    for position in (0..batch.input_ids.len()).filter(|&p| batch.is_token[p]) {
        let continues = position % batch.sequence_length > 0
            && batch.document_ids[position] == batch.document_ids[position - 1];
        match found.last_mut() {
            Some((_, len)) if continues => *len += 1,
            _ => found.push((position, 1)),
        }
    }
    found
}

#[test]
fn a_document_is_the_same_in_company_and_alone() {
    let device = Device::flex();
    let router: RouterConfig = serde_json::from_value(json!({ "kind": "lpr" })).unwrap();
    for family in families() {
        let model = CausalLm::new(&family.decoder(), &router, 3, &device);
        for packing in [Packing::None, Packing::Packed, Packing::BestFit] {
            for document_mask in [true, false] {
                let name = format!("{} {packing:?} {document_mask}", family.name());
                let batch = batch(packing, document_mask);
                let together = hidden(&model, &MicroBatch::new(&batch, &device).input);
                let width = together.len() / batch.input_ids.len();
                let documents = documents(&batch);
                let shares_rows = document_mask && packing != Packing::None;
                assert_eq!(documents.len() > batch.num_rows, shares_rows, "{name}");
                for (start, len) in documents {
                    let ids = &batch.input_ids[start..start + len];
                    let expected = hidden(&model, &alone(ids, &device));
                    let found = &together[start * width..(start + len) * width];
                    for (found, expected) in found.iter().zip(&expected) {
                        let difference = (found - expected).abs();
                        assert!(difference < 1e-4, "{name}: {found} {expected}");
                    }
                }
            }
        }
    }
}
