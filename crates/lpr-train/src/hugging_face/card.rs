//! The model card of an exported folder: facts of the run, nothing else.

use std::fmt::Write as _;

use super::config::opens_in_transformers;
use crate::config::RunConfig;
use crate::session::RunState;

/// Name of the file.
pub const CARD_FILE: &str = "README.md";

/// The text of the card of a model with so many `parameters`.
///
/// # Panics
/// As [`RunConfig::to_toml`].
pub fn text(config: &RunConfig, state: &RunState, parameters: usize) -> String {
    let (family, router) = (config.model.name(), config.router.name());
    let opens = opens_in_transformers(&config.model, &config.router);
    let library = if opens {
        "library_name: transformers\n"
    } else {
        ""
    };
    let mut text = format!(
        "---\n{library}tags:\n- mixture-of-experts\n- {family}\n- lpr-train\n---\n\n\
         # {family} with the router `{router}`\n\n{}\n\n\
         | fact | value |\n|---|---|\n\
         | parameters | {parameters} |\n\
         | optimizer steps | {} |\n\
         | tokens seen, padding left out | {} |\n\
         | token positions of a step, at most | {} |\n\
         | seed | {} |\n",
        how_to_open(family, router, opens),
        state.step,
        state.data.tokens,
        config.positions_per_step(),
        config.train.seed,
    );
    if let Some(last) = &state.last_evaluation {
        let _ = write!(
            text,
            "| validation loss after step {}, nats per token | {:.4} |\n\
             | Gini of the expert load, mean over layers | {:.4} |\n\
             | min-max ratio of the expert load, mean over layers | {:.4} |\n",
            last.step, last.loss, last.gini, last.min_max_ratio
        );
    }
    let _ = write!(
        text,
        "\nValidation loss is cross-entropy alone; expert load is exact counts on the validation\n\
         tokens without padding. Steps before an import are not counted. The weights are 32-bit\n\
         floats, written by lpr-train {}.\n\n## Configuration\n\n```toml\n{}```\n",
        env!("CARGO_PKG_VERSION"),
        settings(config)
    );
    text
}

fn how_to_open(family: &str, router: &str, opens: bool) -> String {
    if opens {
        return "Opens in transformers (`AutoModelForCausalLM`) and in lpr-train (`lpr-train import`)."
            .to_owned();
    }
    format!(
        "transformers cannot open this model: no class of it has this family with the router\n\
         `{router}`. lpr-train does (`lpr-train import`). `config.json` has transformers' keys of\n\
         {family}, and the router's complete configuration under `lpr_router`; tensors have\n\
         transformers' names, those of the router below `gate`."
    )
}

/// What decides how the model was trained, without the paths of the machine it was trained on.
fn settings(config: &RunConfig) -> String {
    let mut table: toml::Table = config
        .to_toml()
        .parse()
        .expect("a configuration that was just written");
    let told = ["model", "router", "optimizer", "schedule", "train"];
    table.retain(|section, _| told.contains(&section));
    if let Some(toml::Value::Table(train)) = table.get_mut("train") {
        train.remove("run_dir");
        train.remove("device");
    }
    table.to_string()
}
