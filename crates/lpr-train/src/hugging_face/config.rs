//! `config.json` in both directions: transformers' keys from our configuration, and back.
//!
//! A model that a class of transformers computes has that class's keys. Any other has a model type of
//! its own, the family and the kind of router (`qwen3_moe_lpr`), which transformers does not know and
//! says so. Both have the complete `[router]` section under `lpr_router`, because no class has keys
//! for how a router is trained; where transformers has a key for the same thing, that one counts.

use lpr_model::{FamilyConfig, RouterConfig};
use serde_json::{Map, Value as Json, json};

use crate::config::RunConfig;

/// Name of the file.
pub const CONFIG_FILE: &str = "config.json";
/// The key with our `[router]` section.
const ROUTER_KEY: &str = "lpr_router";

/// What transformers' class of a family computes, and how its config calls our keys.
struct Form {
    /// Our name of the family, which is transformers' model type.
    family: &'static str,
    class: &'static str,
    /// (our key of `[model]`, theirs), beside [`COMMON`]. Two of theirs with one of ours must agree.
    keys: &'static [(&'static str, &'static str)],
    /// (their key, its value if absent), where our default is another one.
    defaults: &'static [(&'static str, &'static str)],
    /// (their key, the only value that is computed here), as JSON.
    fixed: &'static [(&'static str, &'static str)],
    /// The kind of router that the class has.
    router: &'static str,
    /// (our key of `[router]`, theirs).
    router_keys: &'static [(&'static str, &'static str)],
    /// (our key of `[router]`, the only value that the class computes), as JSON.
    router_fixed: &'static [(&'static str, &'static str)],
}

const COMMON: &[(&str, &str)] = &[
    ("vocab_size", "vocab_size"),
    ("hidden_size", "hidden_size"),
    ("num_hidden_layers", "num_hidden_layers"),
    ("num_attention_heads", "num_attention_heads"),
    ("top_k", "num_experts_per_tok"),
    ("rms_norm_eps", "rms_norm_eps"),
    ("initializer_range", "initializer_range"),
    ("tie_word_embeddings", "tie_word_embeddings"),
];

const COMMON_FIXED: &[(&str, &str)] = &[("hidden_act", "\"silu\"")];

/// (key, what another version of transformers calls it).
const ALIASES: &[(&str, &str)] = &[
    ("num_experts", "num_local_experts"),
    ("num_local_experts", "num_experts"),
    ("n_routed_experts", "num_local_experts"),
];

const FORMS: &[Form] = &[
    Form {
        family: "qwen3_moe",
        class: "Qwen3MoeForCausalLM",
        keys: &[
            ("num_key_value_heads", "num_key_value_heads"),
            ("head_dim", "head_dim"),
            ("moe_intermediate_size", "moe_intermediate_size"),
            ("num_experts", "num_experts"),
        ],
        defaults: &[("norm_topk_prob", "false")],
        fixed: &[
            ("attention_bias", "false"),
            ("use_sliding_window", "false"),
            ("decoder_sparse_step", "1"),
            ("mlp_only_layers", "[]"),
        ],
        router: "softmax_topk",
        router_keys: &[
            ("norm_topk_prob", "norm_topk_prob"),
            ("aux_loss_weight", "router_aux_loss_coef"),
        ],
        router_fixed: &[],
    },
    Form {
        family: "mixtral",
        class: "MixtralForCausalLM",
        keys: &[
            ("num_key_value_heads", "num_key_value_heads"),
            ("head_dim", "head_dim"),
            ("moe_intermediate_size", "intermediate_size"),
            ("num_experts", "num_local_experts"),
        ],
        defaults: &[],
        fixed: &[("sliding_window", "null")],
        router: "softmax_topk",
        router_keys: &[("aux_loss_weight", "router_aux_loss_coef")],
        router_fixed: &[("norm_topk_prob", "true")],
    },
    Form {
        family: "deepseek_v3",
        class: "DeepseekV3ForCausalLM",
        keys: &[
            ("num_attention_heads", "num_key_value_heads"),
            ("q_lora_rank", "q_lora_rank"),
            ("kv_lora_rank", "kv_lora_rank"),
            ("qk_nope_head_dim", "qk_nope_head_dim"),
            ("qk_rope_head_dim", "qk_rope_head_dim"),
            ("v_head_dim", "v_head_dim"),
            ("moe_intermediate_size", "moe_intermediate_size"),
            ("num_experts", "n_routed_experts"),
            ("num_shared_experts", "n_shared_experts"),
            ("first_k_dense_replace", "first_k_dense_replace"),
            ("intermediate_size", "intermediate_size"),
        ],
        defaults: &[
            ("n_shared_experts", "1"),
            ("first_k_dense_replace", "3"),
            ("norm_topk_prob", "true"),
            ("routed_scaling_factor", "2.5"),
            ("n_group", "8"),
            ("topk_group", "4"),
        ],
        fixed: &[
            ("attention_bias", "false"),
            ("rope_interleave", "true"),
            ("scoring_func", "\"sigmoid\""),
            ("topk_method", "\"noaux_tc\""),
            ("moe_layer_freq", "1"),
        ],
        router: "sigmoid_topk",
        router_keys: &[
            ("norm_topk_prob", "norm_topk_prob"),
            ("routed_scaling_factor", "routed_scaling_factor"),
            ("n_group", "n_group"),
            ("topk_group", "topk_group"),
        ],
        router_fixed: &[],
    },
];

impl Form {
    fn of(family: &str) -> Option<&'static Self> {
        FORMS.iter().find(|form| form.family == family)
    }

    fn keys(&self) -> impl Iterator<Item = &'static (&'static str, &'static str)> {
        COMMON.iter().chain(self.keys)
    }

    fn fixed(&self) -> impl Iterator<Item = (&'static str, Json)> {
        let both = COMMON_FIXED.iter().chain(self.fixed);
        both.map(|(key, text)| (*key, parsed(text)))
    }

    fn computes(&self, router: &Json) -> bool {
        router["kind"] == self.router
            && self
                .router_fixed
                .iter()
                .all(|(key, text)| router[key] == parsed(text))
    }
}

fn parsed(text: &str) -> Json {
    serde_json::from_str(text).expect("the tables hold JSON")
}

fn section(config: &impl serde::Serialize) -> Json {
    serde_json::to_value(config).expect("a configuration consists of numbers, words and lists")
}

/// Whether a class of transformers computes this model.
pub fn opens_in_transformers(model: &FamilyConfig, router: &RouterConfig) -> bool {
    Form::of(model.name()).is_some_and(|form| form.computes(&section(router)))
}

/// The content of `config.json`; `eos_id` is the tokenizer's end mark. `None` if the family has no
/// form in transformers that is known here.
pub fn to_json(config: &RunConfig, eos_id: Option<u32>) -> Option<Json> {
    let form = Form::of(config.model.name())?;
    let (model, router) = (section(&config.model), section(&config.router));
    let (model_type, class) = if form.computes(&router) {
        (form.family.to_owned(), form.class.to_owned())
    } else {
        let kind = config.router.name();
        let family_class = form.class.trim_end_matches("ForCausalLM");
        (
            format!("{}_{kind}", form.family),
            format!("{family_class}{}ForCausalLM", camel_case(kind)),
        )
    };
    let mut theirs = json!({
        "architectures": [class],
        "model_type": model_type,
        "dtype": "float32",
        "rope_theta": model["rope_theta"],
        "max_position_embeddings": config.data.sequence_length,
        "bos_token_id": null,
        "eos_token_id": eos_id,
        "pad_token_id": null,
    });
    for (key, value) in form.fixed() {
        theirs[key] = value;
    }
    let is_dense = model["first_k_dense_replace"].as_u64() > Some(0);
    for (key, their_key) in form.keys() {
        if *key != "intermediate_size" || is_dense {
            theirs[their_key] = model[key].clone();
        }
    }
    if form.computes(&router) {
        for (key, their_key) in form.router_keys {
            theirs[their_key] = router[key].clone();
        }
    }
    theirs[ROUTER_KEY] = router;
    Some(theirs)
}

fn camel_case(name: &str) -> String {
    let capital = |word: &str| word[..1].to_uppercase() + &word[1..];
    name.split('_').map(capital).collect()
}

/// Our `[model]` and `[router]` sections from the content of `config.json`, as far as they can be
/// derived; what they cannot be derived from is added to `problems`.
pub fn from_json(theirs: &Json, problems: &mut Vec<String>) -> Option<(Json, Json)> {
    let Some(model_type) = theirs["model_type"].as_str() else {
        problems.push(format!("{CONFIG_FILE} has no `model_type`"));
        return None;
    };
    let found = FORMS.iter().find_map(|form| {
        let rest = model_type.strip_prefix(form.family)?;
        (rest.is_empty() || rest.starts_with('_')).then_some((form, rest.trim_start_matches('_')))
    });
    let Some((form, kind)) = found else {
        let families: Vec<&str> = FORMS.iter().map(|form| form.family).collect();
        problems.push(format!(
            "the model type is {model_type:?}; known are {}, alone or with `_` and a router of \
             lpr-train",
            families.join(", ")
        ));
        return None;
    };
    let keys = Keys { form, theirs };
    for (key, only) in form.fixed() {
        let value = keys.get(key);
        if value != only && !theirs[key].is_null() {
            problems.push(format!("`{key}` is {value}, only {only} is computed here"));
        }
    }
    if !theirs["quantization_config"].is_null() {
        problems.push("the weights are quantized, which is not read".to_owned());
    }
    Some((keys.model(problems), keys.router(kind, problems)?))
}

/// The keys of a `config.json`, with their defaults.
struct Keys<'a> {
    form: &'static Form,
    theirs: &'a Json,
}

impl Keys<'_> {
    /// The value of one of their keys; null if it is absent and has no default.
    fn get(&self, key: &str) -> Json {
        let aliases = ALIASES.iter().filter(|(name, _)| *name == key);
        let names = std::iter::once(key).chain(aliases.map(|(_, alias)| *alias));
        let mut given = names.map(|name| &self.theirs[name]);
        let default = || self.form.defaults.iter().find(|(name, _)| *name == key);
        match given.find(|value| !value.is_null()) {
            None => default().map_or(Json::Null, |(_, text)| parsed(text)),
            Some(value) => value.clone(),
        }
    }

    fn model(&self, problems: &mut Vec<String>) -> Json {
        let mut ours = Map::new();
        ours.insert("family".to_owned(), self.form.family.into());
        for (key, their_key) in self.form.keys() {
            let value = self.get(their_key);
            match ours.get(*key) {
                Some(other) if !value.is_null() && value != *other => problems.push(format!(
                    "`{their_key}` is {value}, only {other}, as many as `{key}`, is computed here"
                )),
                None if !value.is_null() => {
                    ours.insert((*key).to_owned(), value);
                }
                _ => {}
            }
        }
        if let Some(theta) = self.rope_theta(problems) {
            ours.insert("rope_theta".to_owned(), theta);
        }
        let number = |ours: &Map<String, Json>, key: &str| ours.get(key).and_then(Json::as_u64);
        let heads = number(&ours, "num_attention_heads").filter(|heads| *heads > 0);
        let derived = number(&ours, "hidden_size").zip(heads).map(|(w, h)| w / h);
        let has_head_dim = self.form.keys.iter().any(|(key, _)| *key == "head_dim");
        if let (true, None, Some(width)) = (has_head_dim, ours.get("head_dim"), derived) {
            ours.insert("head_dim".to_owned(), width.into());
        }
        // Their width of dense blocks is there whether or not there are any.
        if number(&ours, "first_k_dense_replace") == Some(0) {
            ours.remove("intermediate_size");
        }
        Json::Object(ours)
    }

    /// The base of the rotary frequencies, from the keys of transformers 4 or 5.
    fn rope_theta(&self, problems: &mut Vec<String>) -> Option<Json> {
        let mut thetas = vec![&self.theirs["rope_theta"]];
        for key in ["rope_parameters", "rope_scaling"] {
            let rope = &self.theirs[key];
            for name in ["rope_type", "type"] {
                if !rope[name].is_null() && rope[name] != "default" {
                    problems.push(format!(
                        "`{key}.{name}` is {}, only \"default\" is computed here",
                        rope[name]
                    ));
                }
            }
            let share = &rope["partial_rotary_factor"];
            if share.as_f64().is_some_and(|share| share < 1.0) {
                problems.push(format!(
                    "`{key}.partial_rotary_factor` is {share}, only 1 is computed here"
                ));
            }
            thetas.push(&rope["rope_theta"]);
        }
        thetas.retain(|theta| !theta.is_null());
        if thetas.iter().any(|t| t.as_f64() != thetas[0].as_f64()) {
            problems.push(format!("`rope_theta` has several values: {thetas:?}"));
        }
        thetas.first().map(|theta| (*theta).clone())
    }

    /// Our `[router]` section; `kind` is the rest of the model type, empty for a router that the
    /// class of transformers has.
    fn router(&self, kind: &str, problems: &mut Vec<String>) -> Option<Json> {
        let form = self.form;
        let given = &self.theirs[ROUTER_KEY];
        let wanted = if kind.is_empty() { form.router } else { kind };
        if given.is_null() && !kind.is_empty() {
            problems.push(format!(
                "the model type names the router `{kind}`, but there is no `{ROUTER_KEY}`"
            ));
            return None;
        }
        // transformers adds the balancing loss once per micro-batch, by its coefficient alone.
        let foreign = match form.router {
            "softmax_topk" => json!({ "kind": wanted, "equiv_accum": 1.0 }),
            _ => json!({ "kind": wanted }),
        };
        let mut ours = if given.is_null() {
            foreign
        } else {
            given.clone()
        };
        if ours["kind"] != wanted {
            problems.push(format!(
                "`{ROUTER_KEY}.kind` is {}, the model type says `{wanted}`",
                ours["kind"]
            ));
            return None;
        }
        if kind.is_empty() {
            for (key, text) in form.router_fixed {
                ours[key] = parsed(text);
            }
            for (key, their_key) in form.router_keys {
                let value = self.get(their_key);
                if !value.is_null() {
                    ours[key] = value;
                }
            }
        }
        Some(ours)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(family: &str, router: &str) -> RunConfig {
        let own = match family {
            "deepseek_v3" => {
                "q_lora_rank = 12\nkv_lora_rank = 10\nqk_nope_head_dim = 6\n\
                 qk_rope_head_dim = 4\nv_head_dim = 8\nnum_shared_experts = 1\n\
                 first_k_dense_replace = 1\nintermediate_size = 20"
            }
            _ => "num_key_value_heads = 1\nhead_dim = 8",
        };
        let text = format!(
            "[model]\nfamily = \"{family}\"\nvocab_size = 257\nhidden_size = 16\n\
             num_hidden_layers = 2\nnum_attention_heads = 2\nmoe_intermediate_size = 12\n\
             num_experts = 6\ntop_k = 2\nrope_theta = 500.0\n{own}\n\
             [router]\n{router}\n[data]\ntrain = [\"x\"]\n[train]\ntotal_steps = 3\n"
        );
        RunConfig::parse("x", &text, &[]).unwrap_or_else(|error| panic!("{error}"))
    }

    fn written(config: &RunConfig, eos_id: Option<u32>) -> Json {
        to_json(config, eos_id).expect("a family with a form")
    }

    fn back(theirs: &Json) -> Result<(FamilyConfig, RouterConfig), Vec<String>> {
        let mut problems = Vec::new();
        match from_json(theirs, &mut problems) {
            Some((model, router)) if problems.is_empty() => Ok((
                serde_json::from_value(model).expect("a family"),
                serde_json::from_value(router).expect("a router"),
            )),
            _ => Err(problems),
        }
    }

    #[test]
    fn every_family_and_router_survives_and_the_model_type_tells_what_opens() {
        for family in FORMS.iter().map(|form| form.family) {
            for router in RouterConfig::NAMES {
                for norm in [None, Some(false), Some(true)] {
                    let norm = norm.filter(|_| router.ends_with("topk"));
                    let norm = norm.map_or(String::new(), |n| format!("norm_topk_prob = {n}"));
                    let config = config(family, &format!("kind = \"{router}\"\n{norm}"));
                    let theirs = written(&config, Some(256));
                    let opens = opens_in_transformers(&config.model, &config.router);
                    assert_eq!(theirs["model_type"] == family, opens);
                    assert_eq!(
                        back(&theirs),
                        Ok((config.model, config.router)),
                        "{theirs:#}"
                    );
                }
            }
        }
        let opens = |family, router| {
            let config = config(family, router);
            opens_in_transformers(&config.model, &config.router)
        };
        assert!(opens("qwen3_moe", "kind = \"softmax_topk\""));
        assert!(!opens("mixtral", "kind = \"softmax_topk\""));
        assert!(opens(
            "mixtral",
            "kind = \"softmax_topk\"\nnorm_topk_prob = true"
        ));
        assert!(opens("deepseek_v3", "kind = \"sigmoid_topk\""));
        let lpr = written(&config("qwen3_moe", "kind = \"lpr\""), None);
        assert_eq!(lpr["model_type"], "qwen3_moe_lpr");
        assert_eq!(lpr["architectures"][0], "Qwen3MoeLprForCausalLM");
    }

    #[test]
    fn keys_of_transformers_count_before_ours() {
        let mut theirs = written(&config("qwen3_moe", "kind = \"softmax_topk\""), None);
        theirs["norm_topk_prob"] = true.into();
        theirs["router_aux_loss_coef"] = 0.5.into();
        let Ok((_, RouterConfig::SoftmaxTopk(router))) = back(&theirs) else {
            panic!("a softmax router")
        };
        assert!(router.norm_topk_prob);
        assert_eq!((router.aux_loss_weight, router.equiv_accum), (0.5, 18.0));
    }

    /// As transformers 5 writes it: no `lpr_router`, the rotary base in a table, no `head_dim`.
    #[test]
    fn a_folder_of_transformers_needs_no_keys_of_ours() {
        let config = config("mixtral", "kind = \"softmax_topk\"\nnorm_topk_prob = true");
        let mut theirs = written(&config, None);
        let object = theirs.as_object_mut().expect("an object");
        for key in [ROUTER_KEY, "rope_theta", "head_dim"] {
            object.remove(key);
        }
        let count = object.remove("num_local_experts");
        theirs["num_experts"] = count.expect("written");
        theirs["rope_parameters"] = json!({ "rope_type": "default", "rope_theta": 500 });
        let (model, RouterConfig::SoftmaxTopk(router)) = back(&theirs).expect("complete") else {
            panic!("a softmax router")
        };
        assert_eq!(section(&model), section(&config.model));
        assert!(router.norm_topk_prob);
        assert!((router.equiv_accum - 1.0).abs() < 1e-12);
    }

    #[test]
    fn everything_that_is_not_computed_here_is_listed() {
        let mut theirs = written(&config("deepseek_v3", "kind = \"sigmoid_topk\""), None);
        for (key, value) in [
            ("hidden_act", json!("gelu")),
            ("rope_interleave", json!(false)),
            ("num_key_value_heads", json!(1)),
            ("rope_scaling", json!({ "type": "yarn" })),
            ("quantization_config", json!({ "quant_method": "fp8" })),
            ("rope_parameters", json!({ "rope_theta": 7.0 })),
        ] {
            theirs[key] = value;
        }
        let problems = back(&theirs).expect_err("six problems");
        assert_eq!(problems.len(), 6, "{problems:?}");
        let mut lpr = written(&config("mixtral", "kind = \"lpr\""), None);
        lpr["model_type"] = "mixtral_random".into();
        assert_eq!(back(&lpr).expect_err("another kind").len(), 1);
        lpr["model_type"] = "llama".into();
        assert_eq!(back(&lpr).expect_err("another family").len(), 1);
    }
}
