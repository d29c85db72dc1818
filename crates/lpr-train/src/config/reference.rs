//! Every key of the configuration as Markdown, made from the schema so that it cannot be out of date.

use std::fmt::Write as _;

use serde_json::Value as Json;

use super::RunConfig;
use super::schema::{Fields, Schema};
use super::template::{SECTIONS, one_line, toml_of};
use super::value::described_choices;

const INTRODUCTION: &str = "\
# Configuration

Every section and key of a configuration file (TOML), what it may be, and what it is if absent. Printed by
`lpr-train config reference`. `lpr-train config init my.toml` writes a file to start from, `lpr-train config
check my.toml` lists every problem of one, with `--override SECTION.KEY=VALUE` a key is set on the command line.

For completion, descriptions and checks while typing, editors that know taplo (Even Better TOML) take the JSON
Schema in `docs/config.schema.json`, printed by `lpr-train config schema`: write `#:schema PATH-TO-IT` into the
first line of the file.
";

/// What every key means and may be.
pub fn reference() -> String {
    let schema = Schema::of::<RunConfig>();
    let mut text = INTRODUCTION.to_owned();
    let find = |name: &str| schema.sections().find(|(other, _)| *other == name);
    for (section, node) in SECTIONS.into_iter().filter_map(find) {
        let _ = writeln!(text, "\n## [{section}]\n");
        let description = node["description"].as_str().unwrap_or_default();
        let _ = writeln!(text, "{}", one_line(description));
        for fields in schema.kinds(node) {
            write_kind(&mut text, &schema, fields);
        }
    }
    text
}

fn write_kind(text: &mut String, schema: &Schema, fields: Fields<'_>) {
    if let Some((tag, kind)) = fields.kind {
        let description = one_line(fields.description);
        let _ = writeln!(text, "\n### {tag} = \"{kind}\"\n\n{description}");
    }
    let is_tag = |key: &str| fields.kind.is_some_and(|(tag, _)| tag == key);
    let mut keys = fields.properties.iter().filter(|(key, _)| !is_tag(key));
    let Some(first) = keys.next() else {
        text.push_str("\nIt has no keys.\n");
        return;
    };
    text.push_str("\n| key | value | default | meaning |\n|---|---|---|---|\n");
    for (key, property) in std::iter::once(first).chain(keys) {
        let default = match property.get("default") {
            Some(value) if !value.is_null() => format!("`{}`", toml_of(value)),
            _ if fields.requires(key) => "required".to_owned(),
            _ => "none".to_owned(),
        };
        let value = cell(&schema.allowed(property));
        let meaning = cell(&meaning(schema, property));
        let _ = writeln!(text, "| `{key}` | {value} | {default} | {meaning} |");
    }
}

/// The description of a key, and of each word that it may be.
fn meaning(schema: &Schema, property: &Json) -> String {
    let mut text = one_line(property["description"].as_str().unwrap_or_default());
    let described = described_choices(choice_of(schema, property));
    for (word, meaning) in described {
        if !meaning.is_empty() {
            let _ = write!(text, " `{word}`: {}", one_line(meaning));
        }
    }
    text
}

/// What the key chooses from; of a list, what each of its members does.
fn choice_of<'a>(schema: &'a Schema, property: &'a Json) -> &'a Json {
    let property = schema.resolve(property);
    match property.get("items") {
        Some(items) => schema.resolve(items),
        None => property,
    }
}

/// A bar would end the cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_of_every_kind_has_a_description() {
        let schema = Schema::of::<RunConfig>();
        let mut keys = 0;
        for (section, node) in schema.sections() {
            assert!(SECTIONS.contains(&section), "{section} is not written");
            for fields in schema.kinds(node) {
                let is_tag = |key: &str| fields.kind.is_some_and(|(tag, _)| tag == key);
                for (key, property) in fields.properties {
                    let described = property["description"].as_str();
                    let is_known = is_tag(key) || described.is_some_and(|text| text.len() > 10);
                    assert!(is_known, "{section}.{key}: {described:?}");
                    let allowed = schema.allowed(property);
                    assert_ne!(allowed, "another value", "{section}.{key}");
                    keys += 1;
                }
            }
        }
        assert!(keys > 100, "{keys}");
    }

    #[test]
    fn rows_say_range_default_and_the_meaning_of_each_choice() {
        let text = reference();
        for row in [
            "\n## [model]\n",
            "\n### kind = \"lpr\"\n",
            "\n| `vocab_size` | an integer, at least 1 and at most 4194304 | required | Rows of the embedding",
            "| `precision` | one of \"f32\", \"bf16\" | `\"f32\"` | What matrix products multiply. `f32`: 32-bit",
            "| `run_dir` | a string in quotes | none | ",
            "\\|K - T\\|",
        ] {
            assert!(text.contains(row), "{row} in {text}");
        }
    }
}
