//! The JSON Schema of the configuration, made from the Rust types, and the check of a tree against
//! it.
//!
//! The types are the only source of truth: names, ranges, choices, defaults and descriptions all
//! come from them.

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json};
use toml::Value;

use super::layers::{Item, Node};
use super::problem::{Place, Problem, nearest};
use super::value::{choices, describe, length_fits, length_of, range_of, scalar, type_of};

/// A schema of a table of tables (the sections).
#[derive(Clone, Debug)]
pub struct Schema {
    root: Json,
}

/// The keys of one kind of a table.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a> {
    /// The description of the table or of this kind of it.
    pub description: &'a str,
    /// Schemas of the keys.
    pub properties: &'a Map<String, Json>,
    /// What this kind is called, if the table has several: the key that selects it and its value.
    pub kind: Option<(&'a str, &'a str)>,
    required: &'a [Json],
}

impl Fields<'_> {
    /// Whether a table without the key is refused.
    pub fn requires(&self, key: &str) -> bool {
        self.required.iter().any(|name| name == key)
    }
}

impl Schema {
    /// The schema of `T`.
    pub fn of<T: schemars::JsonSchema>() -> Self {
        Self {
            root: schemars::schema_for!(T).to_value(),
        }
    }

    /// The JSON Schema itself.
    pub fn json(&self) -> &Json {
        &self.root
    }

    /// The names of the sections and their schemas.
    pub fn sections(&self) -> impl Iterator<Item = (&str, &Json)> {
        let sections = self.root["properties"].as_object().into_iter().flatten();
        sections.map(|(name, schema)| (name.as_str(), schema))
    }

    /// Every section that has several kinds, with the key that selects one.
    pub fn tags(&self) -> Vec<(String, String)> {
        let tag = |schema| {
            self.kinds(schema)
                .first()
                .and_then(|fields| fields.kind)
                .map(|(tag, _)| tag.to_owned())
        };
        self.sections()
            .filter_map(|(name, schema)| Some((name.to_owned(), tag(schema)?)))
            .collect()
    }

    /// The kinds of a table, one if it has no choice; none if the schema is not that of a table.
    pub fn kinds<'a>(&'a self, schema: &'a Json) -> Vec<Fields<'a>> {
        let schema = self.resolve(schema);
        if let Some(fields) = fields_of(schema) {
            return vec![fields];
        }
        let variants = schema["oneOf"].as_array().map_or(&[][..], Vec::as_slice);
        variants
            .iter()
            .filter_map(|variant| fields_of(self.resolve(variant)))
            .collect()
    }

    /// The schema behind references and behind the choice of a value or nothing.
    pub fn resolve<'a>(&'a self, schema: &'a Json) -> &'a Json {
        if let Some(reference) = schema["$ref"].as_str() {
            let target = reference
                .strip_prefix('#')
                .and_then(|path| self.root.pointer(path));
            return target.map_or(schema, |target| self.resolve(target));
        }
        let present = |choice: &&Json| choice["type"] != "null";
        match schema["anyOf"]
            .as_array()
            .and_then(|choices| choices.iter().find(present))
        {
            Some(choice) => self.resolve(choice),
            None => schema,
        }
    }

    /// What a value may be, in words.
    pub fn allowed(&self, schema: &Json) -> String {
        let schema = self.resolve(schema);
        let choices = choices(schema);
        if !choices.is_empty() {
            let quoted: Vec<String> = choices
                .iter()
                .map(|choice| format!("\"{choice}\""))
                .collect();
            return if quoted.len() == 1 {
                quoted.concat()
            } else {
                format!("one of {}", quoted.join(", "))
            };
        }
        match type_of(schema) {
            "integer" => format!("an integer{}", range_of(schema)),
            "number" => format!("a number{}", range_of(schema)),
            "boolean" => "true or false".to_owned(),
            "string" => "a string in quotes".to_owned(),
            "array" => format!(
                "a list{} [..], each {}",
                length_of(schema),
                self.allowed(&schema["items"])
            ),
            "object" => "a table".to_owned(),
            _ if self.kinds(schema).is_empty() => "another value".to_owned(),
            _ => "a table".to_owned(),
        }
    }

    /// Checks a tree of sections and returns what is right in it; everything else becomes a
    /// problem.
    pub fn check(&self, tree: &Node, problems: &mut Vec<Problem>) -> Value {
        self.check_value("", &self.root, tree, problems)
            .unwrap_or_else(|| Value::Table(toml::Table::new()))
    }

    fn check_value(
        &self,
        key: &str,
        schema: &Json,
        node: &Node,
        problems: &mut Vec<Problem>,
    ) -> Option<Value> {
        let schema = self.resolve(schema);
        let wrong = |problems: &mut Vec<Problem>| {
            let (found, allowed) = (describe(node), self.allowed(schema));
            problems.push(Problem::new(
                &node.place,
                key,
                format!("is {found}; it must be {allowed}"),
            ));
        };
        let kinds = self.kinds(schema);
        if !kinds.is_empty() {
            let Item::Table(table) = &node.item else {
                wrong(problems);
                return None;
            };
            return self.check_table(key, &kinds, &node.place, table, problems);
        }
        if let (Item::Array(items), "array") = (&node.item, type_of(schema)) {
            if !length_fits(schema, items.len()) {
                wrong(problems);
                return None;
            }
            let before = problems.len();
            let values = items
                .iter()
                .filter_map(|item| self.check_value(key, &schema["items"], item, problems));
            let values: Vec<Value> = values.collect();
            return (problems.len() == before).then_some(Value::Array(values));
        }
        let value = node.to_value();
        let checked = scalar(schema, &value);
        if checked.is_none() {
            wrong(problems);
        }
        checked
    }

    fn check_table(
        &self,
        path: &str,
        kinds: &[Fields<'_>],
        place: &Place,
        table: &BTreeMap<String, Node>,
        problems: &mut Vec<Problem>,
    ) -> Option<Value> {
        let fields = select_kind(path, kinds, place, table, problems)?;
        let mut values = toml::Table::new();
        for (name, node) in table {
            match fields.properties.get(name) {
                Some(schema) => {
                    let value = self.check_value(&join(path, name), schema, node, problems);
                    values.extend(value.map(|value| (name.clone(), value)));
                }
                None => problems.push(self.unknown(path, name, fields, kinds, &node.place)),
            }
        }
        for name in fields
            .required
            .iter()
            .filter_map(Json::as_str)
            .filter(|name| !table.contains_key(*name))
        {
            let message = format!(
                "is missing; it must be {}",
                self.allowed(&fields.properties[name])
            );
            problems.push(Problem::new(place, join(path, name), message));
        }
        Some(Value::Table(values))
    }

    /// The problem of a key that the table does not have: where it belongs, or what it may have
    /// been meant to be.
    fn unknown(
        &self,
        path: &str,
        name: &str,
        fields: Fields<'_>,
        kinds: &[Fields<'_>],
        place: &Place,
    ) -> Problem {
        let other_kind = kinds
            .iter()
            .find(|other| other.properties.contains_key(name))
            .and_then(|other| other.kind);
        let homes = self.homes(name);
        let near = nearest(name, fields.properties.keys().map(String::as_str));
        let hint = if let (Some((tag, theirs)), Some((_, ours))) = (other_kind, fields.kind) {
            format!("it belongs to {tag} = \"{theirs}\", but {tag} is \"{ours}\"")
        } else if !homes.is_empty() {
            format!("it belongs under {}", homes.join(" or "))
        } else if let Some(near) = near {
            let near = if path.is_empty() {
                format!("[{near}]")
            } else {
                format!("`{near}`")
            };
            format!("did you mean {near}?")
        } else {
            let known: Vec<&str> = fields.properties.keys().map(String::as_str).collect();
            format!("known here: {}", known.join(", "))
        };
        let noun = if path.is_empty() { "section" } else { "key" };
        Problem::new(
            place,
            join(path, name),
            format!("is not a known {noun}; {hint}"),
        )
    }

    /// The sections that have a key of this name, in brackets.
    fn homes(&self, name: &str) -> Vec<String> {
        let has = |schema| {
            self.kinds(schema)
                .iter()
                .any(|fields| fields.properties.contains_key(name))
        };
        self.sections()
            .filter(|(_, schema)| has(schema))
            .map(|(section, _)| format!("[{section}]"))
            .collect()
    }
}

/// The kind that a table selects. A table without a choice has one.
fn select_kind<'a>(
    path: &str,
    kinds: &[Fields<'a>],
    place: &Place,
    table: &BTreeMap<String, Node>,
    problems: &mut Vec<Problem>,
) -> Option<Fields<'a>> {
    let first = *kinds.first()?;
    let Some((tag, _)) = first.kind else {
        return Some(first);
    };
    let names: Vec<&str> = kinds
        .iter()
        .filter_map(|fields| Some(fields.kind?.1))
        .collect();
    let quoted: Vec<String> = names.iter().map(|name| format!("\"{name}\"")).collect();
    let allowed = quoted.join(", ");
    let key = join(path, tag);
    let Some(node) = table.get(tag) else {
        problems.push(Problem::new(
            place,
            key,
            format!("is missing; it must be one of {allowed}"),
        ));
        return None;
    };
    let value = node.to_value();
    let chosen = value
        .as_str()
        .and_then(|name| names.iter().position(|known| *known == name));
    if chosen.is_none() {
        let near = value
            .as_str()
            .and_then(|name| nearest(name, names.iter().copied()));
        let hint = near.map_or_else(String::new, |near| format!("; did you mean \"{near}\"?"));
        let message = format!("is {}; it must be one of {allowed}{hint}", describe(node));
        problems.push(Problem::new(&node.place, key, message));
    }
    chosen.map(|index| kinds[index])
}

fn fields_of(schema: &Json) -> Option<Fields<'_>> {
    let properties = schema["properties"].as_object()?;
    let mut constants = properties
        .iter()
        .filter_map(|(name, schema)| Some((name.as_str(), schema["const"].as_str()?)));
    let kind = constants.next();
    Some(Fields {
        description: schema["description"].as_str().unwrap_or_default(),
        properties,
        kind,
        required: schema["required"].as_array().map_or(&[], Vec::as_slice),
    })
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::config::layers;

    #[derive(Deserialize, Serialize, schemars::JsonSchema)]
    #[serde(deny_unknown_fields)]
    struct Zoo {
        house: House,
        #[serde(default)]
        garden: Garden,
    }

    #[derive(Deserialize, Serialize, schemars::JsonSchema)]
    #[serde(tag = "kind", rename_all = "snake_case")]
    enum House {
        /// A tank.
        Tank(Tank),
        /// A cage.
        Cage(Cage),
    }

    #[derive(Deserialize, Serialize, schemars::JsonSchema)]
    #[serde(deny_unknown_fields)]
    struct Tank {
        #[schemars(range(min = 1, max = 9))]
        litres: u64,
        salt: Option<bool>,
    }

    #[derive(Deserialize, Serialize, schemars::JsonSchema)]
    #[serde(deny_unknown_fields)]
    struct Cage {
        bars: u32,
    }

    #[derive(Default, Deserialize, Serialize, schemars::JsonSchema)]
    #[serde(deny_unknown_fields, default)]
    struct Garden {
        #[schemars(inner(range(min = 0.0, max = 1.0)))]
        corners: [f64; 2],
        #[schemars(extend("exclusiveMinimum" = 0.0))]
        width: f64,
        flower: Flower,
        second: Option<Flower>,
        name: String,
    }

    #[derive(Default, Deserialize, Serialize, schemars::JsonSchema)]
    #[serde(rename_all = "snake_case")]
    enum Flower {
        #[default]
        Rose,
        /// Tall.
        Lily,
    }

    fn check(text: &str) -> (Value, Vec<String>) {
        let mut problems = Vec::new();
        let value = Schema::of::<Zoo>().check(&layers::parse(0, "z", text).tree, &mut problems);
        let mut texts: Vec<String> = problems.iter().map(ToString::to_string).collect();
        texts.sort();
        (value, texts)
    }

    fn problems(text: &str) -> Vec<String> {
        check(text).1
    }

    #[test]
    fn a_right_tree_comes_back_as_it_is_with_numbers_as_floats_where_wanted() {
        let text = "[house]\nkind = \"tank\"\nlitres = 3\nsalt = true\n[garden]\ncorners = [0, \
         1.0]\nwidth = 2\n\
                    flower = \"lily\"\nsecond = \"rose\"\nname = \"x\"\n";
        let (value, problems) = check(text);
        assert_eq!(problems, Vec::<String>::new());
        let want = text
            .replace("[0, 1.0]", "[0.0, 1.0]")
            .replace("width = 2", "width = 2.0");
        assert_eq!(value, Value::Table(want.parse().expect("valid")));
        Zoo::deserialize(value).expect("what the schema accepts, the types accept");
    }

    #[test]
    fn wrong_types_ranges_choices_and_lengths_say_what_is_allowed() {
        let house = "[house]\nkind = \"tank\"\n";
        let cases = [
            (
                "litres = 0",
                "z:3: house.litres is 0 (integer); it must be an integer, at least 1 and at most 9",
            ),
            (
                "litres = 2.0",
                "z:3: house.litres is 2.0 (float); it must be an integer, at least 1 and at most 9",
            ),
            (
                "litres = 1\nsalt = 1",
                "z:4: house.salt is 1 (integer); it must be true or false",
            ),
        ];
        for (keys, want) in cases {
            assert_eq!(problems(&format!("{house}{keys}\n")), [want]);
        }
        let house = "house = {kind = \"cage\", bars = 4}\n[garden]\n";
        let cases = [
            (
                "corners = [0.0]",
                "garden.corners is a list of 1; it must be a list of 2 values [..], each a \
                 number, at least 0 and at most 1",
            ),
            (
                "corners = [0, 2]",
                "garden.corners is 2 (integer); it must be a number, at least 0 and at most 1",
            ),
            (
                "width = 0.0",
                "garden.width is 0.0 (float); it must be a number, above 0",
            ),
            (
                "width = nan",
                "garden.width is nan (float); it must be a number, above 0",
            ),
            (
                "width = inf",
                "garden.width is inf (float); it must be a number, above 0",
            ),
            (
                "flower = \"ros\"",
                "garden.flower is \"ros\" (string); it must be one of \"rose\", \"lily\"",
            ),
            (
                "second = 1",
                "garden.second is 1 (integer); it must be one of \"rose\", \"lily\"",
            ),
            (
                "name = 1",
                "garden.name is 1 (integer); it must be a string in quotes",
            ),
            (
                "name = {}",
                "garden.name is a table; it must be a string in quotes",
            ),
        ];
        for (keys, want) in cases {
            assert_eq!(
                problems(&format!("{house}{keys}\n")),
                [format!("z:3: {want}")]
            );
        }
        assert_eq!(
            problems("house = 3\n"),
            ["z:1: house is 3 (integer); it must be a table"]
        );
    }

    #[test]
    fn unknown_keys_say_where_they_belong_or_what_is_near() {
        let tank = "[house]\nkind = \"tank\"\nlitres = 1\n";
        let cases = [
            (
                "liters = 2",
                "z:4: house.liters is not a known key; did you mean `litres`?",
            ),
            (
                "flower = \"rose\"",
                "z:4: house.flower is not a known key; it belongs under [garden]",
            ),
            (
                "bars = 2",
                "z:4: house.bars is not a known key; it belongs to kind = \"cage\", but kind is \
                 \"tank\"",
            ),
            (
                "qqq = 2",
                "z:4: house.qqq is not a known key; known here: kind, litres, salt",
            ),
            (
                "[gardens]\nx = 1",
                "z:4: gardens is not a known section; did you mean [garden]?",
            ),
        ];
        for (keys, want) in cases {
            assert_eq!(problems(&format!("{tank}{keys}\n")), [want]);
        }
        let lost = format!("width = 1.0\n{tank}");
        assert_eq!(
            problems(&lost),
            ["z:1: width is not a known section; it belongs under [garden]"]
        );
    }

    #[test]
    fn missing_keys_and_kinds_are_reported_at_their_table() {
        assert_eq!(problems(""), ["z: house is missing; it must be a table"]);
        let want = "z:1: house.kind is missing; it must be one of \"tank\", \"cage\"";
        assert_eq!(problems("[house]\nlitres = 1\n"), [want]);
        let want = "z:2: house.kind is \"tnak\" (string); it must be one of \"tank\", \"cage\"; \
         did you mean \"tank\"?";
        assert_eq!(problems("[house]\nkind = \"tnak\"\n"), [want]);
        let want =
            "z:1: house.bars is missing; it must be an integer, at least 0 and at most 4294967295";
        assert!(problems("[house]\nkind = \"cage\"\n")[0].starts_with(&want[..40]));
    }

    #[test]
    fn everything_wrong_is_found_in_one_pass_and_the_rest_is_kept() {
        let (value, problems) = check(
            "[house]\nkind = \"cage\"\nbars = -1\n[garden]\nwidth = \"wide\"\nhight = 2\nname = \
             \"x\"\n",
        );
        assert_eq!(problems.len(), 3, "{problems:?}");
        assert_eq!(
            value,
            Value::Table(
                "[house]\nkind = \"cage\"\n[garden]\nname = \"x\"\n"
                    .parse()
                    .expect("valid")
            )
        );
    }

    #[test]
    fn long_values_are_shortened_and_control_characters_are_not_shown() {
        let text = format!("house = \"{}\\u001b[31m\"\n", "x".repeat(200));
        let problem = &problems(&text)[0];
        assert!(problem.len() < 150 && problem.contains(".."), "{problem}");
        assert!(!problems("house = \"\\u001b[31m\"\n")[0].contains('\u{1b}'));
    }

    #[test]
    fn sections_with_several_kinds_are_known() {
        assert_eq!(
            Schema::of::<Zoo>().tags(),
            [("house".to_owned(), "kind".to_owned())]
        );
    }
}
