//! One value and the part of the schema that speaks of it: type, choices, range, length.

use serde_json::Value as Json;
use toml::Value;

use super::layers::{Item, Node};

/// The words that a value may be, if the schema is a choice of words.
pub fn choices(schema: &Json) -> Vec<&str> {
    let described = described_choices(schema).into_iter();
    described.map(|(word, _)| word).collect()
}

/// The words that a value may be, each with its meaning where the schema tells it. Choices with
/// and without one come in different forms.
pub fn described_choices(schema: &Json) -> Vec<(&str, &str)> {
    let meaning = schema["description"].as_str().unwrap_or_default();
    if let Some(word) = schema["const"].as_str() {
        return vec![(word, meaning)];
    }
    let list = |name: &str| schema[name].as_array().into_iter().flatten();
    let listed = list("enum").filter_map(Json::as_str);
    listed
        .map(|word| (word, ""))
        .chain(list("oneOf").flat_map(described_choices))
        .collect()
}

/// The type of a value, not counting that it may be absent.
pub fn type_of(schema: &Json) -> &str {
    let several = || {
        schema["type"]
            .as_array()?
            .iter()
            .filter_map(Json::as_str)
            .find(|name| *name != "null")
    };
    schema["type"].as_str().or_else(several).unwrap_or_default()
}

/// The value as the schema wants it: the right type, one of the choices, in range.
pub fn scalar(schema: &Json, value: &Value) -> Option<Value> {
    let choices = choices(schema);
    if !choices.is_empty() {
        return value
            .as_str()
            .filter(|text| choices.contains(text))
            .map(|_| value.clone());
    }
    let number = match value {
        Value::Integer(number) => Some(*number as f64),
        Value::Float(number) => Some(*number),
        _ => None,
    };
    let fits = number.is_none_or(|number| number.is_finite() && in_range(schema, number));
    match (type_of(schema), value) {
        ("integer", Value::Integer(_))
        | ("number", Value::Float(_))
        | ("boolean", Value::Boolean(_))
        | ("string", Value::String(_)) => fits.then(|| value.clone()),
        ("number", Value::Integer(_)) => number.filter(|_| fits).map(Value::Float),
        _ => None,
    }
}

fn in_range(schema: &Json, number: f64) -> bool {
    let bound = |name: &str| schema[name].as_f64();
    bound("minimum").is_none_or(|min| number >= min)
        && bound("maximum").is_none_or(|max| number <= max)
        && bound("exclusiveMinimum").is_none_or(|min| number > min)
        && bound("exclusiveMaximum").is_none_or(|max| number < max)
}

pub fn length_fits(schema: &Json, length: usize) -> bool {
    schema["minItems"]
        .as_u64()
        .is_none_or(|min| length as u64 >= min)
        && schema["maxItems"]
            .as_u64()
            .is_none_or(|max| length as u64 <= max)
}

pub fn range_of(schema: &Json) -> String {
    let bound = |name: &str, word: &str| {
        schema
            .get(name)
            .map(|value| format!("{word} {}", plain(value)))
    };
    let lower = bound("minimum", "at least").or_else(|| bound("exclusiveMinimum", "above"));
    let upper = bound("maximum", "at most").or_else(|| bound("exclusiveMaximum", "below"));
    match (lower, upper) {
        (Some(lower), Some(upper)) => format!(", {lower} and {upper}"),
        (Some(bound), None) | (None, Some(bound)) => format!(", {bound}"),
        (None, None) => String::new(),
    }
}

/// A number without a needless fraction. Large integers are no floats.
fn plain(value: &Json) -> String {
    match value.as_f64() {
        Some(number) if value.is_f64() => number.to_string(),
        _ => value.to_string(),
    }
}

pub fn length_of(schema: &Json) -> String {
    match (schema["minItems"].as_u64(), schema["maxItems"].as_u64()) {
        (Some(min), Some(max)) if min == max => format!(" of {min} values"),
        (Some(min), _) if min > 0 => format!(" of at least {min}"),
        _ => String::new(),
    }
}

/// The value found and its type, short enough for a line and without control characters.
pub fn describe(node: &Node) -> String {
    const MAX_CHARS: usize = 60;
    let (noun, text) = match &node.item {
        Item::Table(_) => return "a table".to_owned(),
        Item::Array(items) => return format!("a list of {}", items.len()),
        // What the parser makes of `10--`, after it has said that this is not valid.
        Item::Scalar(Value::Datetime(date)) if date.date.is_none() && date.time.is_none() => {
            return "half a date".to_owned();
        }
        Item::Scalar(value) => (value.type_str(), value.to_string()),
    };
    let text: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    let shown: String = text.chars().take(MAX_CHARS).collect();
    let dots = if shown.len() < text.len() { ".." } else { "" };
    format!("{shown}{dots} ({noun})")
}
