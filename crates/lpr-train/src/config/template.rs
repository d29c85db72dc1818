//! A commented configuration file to start from, made from the schema so that it cannot be out of
//! date.

use std::fmt::Write as _;

use serde_json::{Map, Value as Json};

use super::RunConfig;
use super::schema::Schema;

/// A small run on generated text: the keys without a default, and what makes it short.
const EXAMPLE: &str = r#"
[model]
family = "qwen3_moe"
vocab_size = 257
hidden_size = 64
num_hidden_layers = 2
num_attention_heads = 4
num_key_value_heads = 2
head_dim = 16
moe_intermediate_size = 32
num_experts = 16
top_k = 2
[router]
kind = "lpr"
[data]
train = ["builtin:synthetic"]
validation = ["builtin:synthetic"]
sequence_length = 128
[train]
total_steps = 200
"#;

/// The order in which the sections are written.
pub(super) const SECTIONS: [&str; 10] = [
    "model",
    "router",
    "data",
    "optimizer",
    "schedule",
    "train",
    "stability",
    "checkpoint",
    "eval",
    "log",
];

/// A configuration file with every key of the example's kinds, its meaning, allowed values and
/// default.
///
/// # Panics
/// If the built-in example does not load, which a test excludes.
pub fn template() -> String {
    let config = RunConfig::parse("example", EXAMPLE, &[]).expect("the built-in example is valid");
    let values = serde_json::to_value(&config)
        .expect("a configuration consists of numbers, words and lists");
    let schema = Schema::of::<RunConfig>();
    let mut text = "# A run of lpr-train. Keys with a default are shown as comments.\n\
        # For completion and checks in editors: `lpr-train config schema > lpr-train.schema.json`, and\n\
        # as the first line of this file `#:schema ./lpr-train.schema.json`.\n"
        .to_owned();
    for (section, node) in SECTIONS
        .iter()
        .filter_map(|name| schema.sections().find(|(other, _)| other == name))
    {
        let values = values[section].as_object().cloned().unwrap_or_default();
        write_section(&mut text, &schema, section, node, &values);
    }
    text
}

fn write_section(
    text: &mut String,
    schema: &Schema,
    name: &str,
    node: &Json,
    values: &Map<String, Json>,
) {
    let kinds = schema.kinds(node);
    let selected = |(tag, kind): (&str, &str)| values.get(tag).is_some_and(|value| value == kind);
    let Some(fields) = kinds.iter().find(|fields| fields.kind.is_none_or(selected)) else {
        return;
    };
    let title = node["description"].as_str().unwrap_or(fields.description);
    let _ = writeln!(text, "\n# {}\n[{name}]", one_line(title));
    if let Some((tag, kind)) = fields.kind {
        let names: Vec<String> = kinds
            .iter()
            .filter_map(|kind| Some(format!("\"{}\"", kind.kind?.1)))
            .collect();
        let _ = writeln!(text, "# One of {}.\n{tag} = \"{kind}\"", names.join(", "));
    }
    for (key, property) in fields
        .properties
        .iter()
        .filter(|(key, _)| fields.kind.is_none_or(|(tag, _)| tag != *key))
    {
        let description = one_line(property["description"].as_str().unwrap_or_default());
        let _ = writeln!(text, "# {description} ({})", schema.allowed(property));
        let default = property.get("default").filter(|default| !default.is_null());
        let value = values.get(key).filter(|value| !value.is_null());
        let _ = match (value, default) {
            (Some(value), default) if default != Some(value) && in_example(name, key) => {
                writeln!(text, "{key} = {}", toml_of(value))
            }
            (_, Some(default)) => writeln!(text, "# {key} = {}", toml_of(default)),
            _ => writeln!(text, "# {key} ="),
        };
    }
}

/// Whether the example sets the key itself; other values were filled in.
fn in_example(section: &str, key: &str) -> bool {
    let table: toml::Table = EXAMPLE.parse().unwrap_or_default();
    table
        .get(section)
        .and_then(|section| section.get(key))
        .is_some()
}

pub(super) fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// JSON numbers, words and lists are written the same way in TOML.
pub(super) fn toml_of(value: &Json) -> String {
    value.to_string()
}
