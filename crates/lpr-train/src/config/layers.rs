//! Configuration files and overrides, layered into one tree that remembers where each key was set.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::PathBuf;

use toml::Value;
use toml::de::{DeTable, DeValue};

use super::problem::{Place, Problem, has_token};

/// A larger file is no configuration.
pub const MAX_FILE_BYTES: u64 = 1 << 20;

/// A value and where its key was set.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Where.
    pub place: Place,
    /// The value.
    pub item: Item,
}

/// A value in the tree.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// Keys and values.
    Table(BTreeMap<String, Node>),
    /// A list.
    Array(Vec<Node>),
    /// Anything else.
    Scalar(Value),
}

impl Node {
    /// The node at a dotted key, or the last one on the way to it.
    pub fn closest(&self, key: &str) -> &Self {
        key.split('.').fold(self, |node, part| match &node.item {
            Item::Table(table) => table.get(part).unwrap_or(node),
            _ => node,
        })
    }

    /// The value as plain TOML.
    pub fn to_value(&self) -> Value {
        match &self.item {
            Item::Table(table) => Value::Table(
                table
                    .iter()
                    .map(|(key, node)| (key.clone(), node.to_value()))
                    .collect(),
            ),
            Item::Array(items) => Value::Array(items.iter().map(Self::to_value).collect()),
            Item::Scalar(value) => value.clone(),
        }
    }
}

/// A layer that was read, with what is wrong in its text.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// The tables that could be read.
    pub tree: Node,
    /// Problems of the file or its syntax.
    pub problems: Vec<Problem>,
    /// False if part of the text could not be understood, so that keys may seem to be missing.
    pub complete: bool,
}

/// The text of a configuration file, or why it cannot be one.
///
/// # Errors
/// A file that cannot be read, is too large, or is not UTF-8.
pub fn read(index: usize, path: &PathBuf) -> Result<String, Problem> {
    let place = Place::File {
        index,
        path: path.display().to_string(),
        line: 0,
    };
    let problem = |message: String| Problem::new(&place, "", message);
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|error| problem(format!("cannot be opened: {error}")))?;
    file.take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| problem(format!("cannot be read: {error}")))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(problem(format!(
            "is larger than {MAX_FILE_BYTES} bytes; is this a configuration file?"
        )));
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let line = error.as_bytes()[..valid]
            .split(|&byte| byte == b'\n')
            .count();
        let place = Place::File {
            index,
            path: path.display().to_string(),
            line,
        };
        Problem::new(
            &place,
            "",
            "is not UTF-8 text from here on; save the file as UTF-8",
        )
    })
}

/// Reads the text of a configuration file as far as it can be understood.
pub fn parse(index: usize, path: &str, text: &str) -> Layer {
    let at = |line| Place::File {
        index,
        path: path.to_owned(),
        line,
    };
    let line_of = |span: Range<usize>| at(1 + text[..span.start].matches('\n').count());
    let mut problems = Vec::new();
    if text.trim().is_empty() {
        let message = "the file is empty; `lpr-train config init` writes one to start from";
        problems.push(Problem::new(&at(0), "", message));
    }
    for (number, line) in text.lines().enumerate() {
        if has_token(line) {
            let message = "this line has what looks like a Hugging Face access token; remove it \
             and revoke it if the \
                           file was shared. Tokens belong in the environment variable HF_TOKEN";
            problems.push(Problem::new(&at(number + 1), "", message));
        }
    }
    let (table, errors) = DeTable::parse_recoverable(text);
    let mut complete = true;
    for error in errors {
        let span = error.span().unwrap_or(0..0);
        let duplicate = error.message() == "duplicate key";
        complete &= duplicate;
        let message = if duplicate {
            let name = text.get(span.clone()).unwrap_or_default();
            format!("`{name}` is set a second time; remove one of the two")
        } else {
            format!("not valid TOML: {}", error.message())
        };
        problems.push(Problem::new(&line_of(span), "", message));
    }
    let tree = Node {
        place: at(0),
        item: table_item(table.into_inner(), &line_of),
    };
    Layer {
        tree,
        problems,
        complete,
    }
}

/// Reads one `section.key=value` argument. A value that is no TOML at all counts as a string.
///
/// # Errors
/// An argument without `=` or without a key, and a list, table or quoted string that is broken.
pub fn parse_override(argument: &str) -> Result<Node, Problem> {
    let place = Place::Override {
        argument: argument.to_owned(),
    };
    let problem = |message: String| Err(Problem::new(&place, "", message));
    if has_token(argument) {
        return problem(
            "this looks like a Hugging Face access token; use the variable HF_TOKEN".to_owned(),
        );
    }
    let Some((path, text)) = argument.split_once('=') else {
        return problem("the `=` is missing; write section.key=value".to_owned());
    };
    let parts: Vec<&str> = path.trim().split('.').collect();
    if parts.iter().any(|part| part.trim().is_empty()) {
        return problem("the key is incomplete; write section.key=value".to_owned());
    }
    let text = text.trim();
    let (value, errors) = DeValue::parse_recoverable(text);
    let item = match errors.first() {
        None => value_item(value.into_inner(), &|_| place.clone()),
        Some(_) if !text.starts_with(['[', '{', '"', '\'']) => {
            Item::Scalar(Value::String(text.to_owned()))
        }
        Some(error) => {
            let example = r#"for a list: --override 'data.train=["a.parquet"]'"#;
            return problem(format!(
                "the value is not valid TOML ({}); quote it for the shell, {example}",
                error.message()
            ));
        }
    };
    let leaf = Node {
        place: place.clone(),
        item,
    };
    Ok(parts.iter().rev().fold(leaf, |node, part| Node {
        place: place.clone(),
        item: Item::Table(BTreeMap::from([((*part).trim().to_owned(), node)])),
    }))
}

/// Lays `over` onto `base`: tables merge key by key, anything else replaces.
///
/// `tags` lists sections with the key that selects their kind. A section whose kind changes is
/// replaced as a whole, because the keys of one kind mean nothing to another.
pub fn merge(base: &mut Node, over: Node, tags: &[(String, String)]) {
    let (Item::Table(old), Item::Table(new)) = (&mut base.item, over.item) else {
        return;
    };
    for (section, node) in new {
        let tag = tags
            .iter()
            .find(|(name, _)| *name == section)
            .map(|(_, tag)| tag);
        match old.get_mut(&section) {
            Some(existing) if tag.is_none_or(|tag| !changes(existing, &node, tag)) => {
                merge_node(existing, node);
            }
            _ => {
                old.insert(section, node);
            }
        }
    }
}

/// Whether `over` selects another kind than `base`.
fn changes(base: &Node, over: &Node, tag: &str) -> bool {
    let kind = |node: &Node| match &node.item {
        Item::Table(table) => table.get(tag).map(Node::to_value),
        _ => None,
    };
    kind(over).is_some_and(|new| kind(base).is_some_and(|old| old != new))
}

fn merge_node(base: &mut Node, over: Node) {
    match (&mut base.item, over.item) {
        (Item::Table(old), Item::Table(new)) => {
            for (key, node) in new {
                match old.get_mut(&key) {
                    Some(existing) => merge_node(existing, node),
                    None => {
                        old.insert(key, node);
                    }
                }
            }
        }
        (_, item) => {
            *base = Node {
                place: over.place,
                item,
            }
        }
    }
}

fn table_item(table: DeTable<'_>, place: &dyn Fn(Range<usize>) -> Place) -> Item {
    let entries = table.into_iter().map(|(key, value)| {
        let node = Node {
            place: place(key.span()),
            item: value_item(value.into_inner(), place),
        };
        (key.into_inner().into_owned(), node)
    });
    Item::Table(entries.collect())
}

fn value_item(value: DeValue<'_>, place: &dyn Fn(Range<usize>) -> Place) -> Item {
    Item::Scalar(match value {
        DeValue::Table(table) => return table_item(table, place),
        DeValue::Array(items) => {
            let nodes = items.into_iter().map(|item| {
                let place_of_item = place(item.span());
                Node {
                    place: place_of_item,
                    item: value_item(item.into_inner(), place),
                }
            });
            return Item::Array(nodes.collect());
        }
        DeValue::String(text) => Value::String(text.into_owned()),
        // An integer beyond the range of TOML becomes a float, which no integer key accepts.
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or_else(|_| float(number.as_str()), Value::Integer),
        DeValue::Float(number) => float(number.as_str()),
        DeValue::Boolean(value) => Value::Boolean(value),
        DeValue::Datetime(value) => Value::Datetime(value),
    })
}

fn float(text: &str) -> Value {
    Value::Float(text.parse().unwrap_or(f64::NAN))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(text: &str) -> Node {
        let layer = parse(0, "x.toml", text);
        assert_eq!(layer.problems, []);
        layer.tree
    }

    fn tags() -> Vec<(String, String)> {
        vec![("router".to_owned(), "kind".to_owned())]
    }

    fn merged(base: &str, over: &str) -> Value {
        let mut base = tree(base);
        merge(&mut base, tree(over), &tags());
        base.to_value()
    }

    fn toml(text: &str) -> Value {
        Value::Table(text.parse().expect("valid"))
    }

    #[test]
    fn tables_merge_and_lists_and_values_are_replaced() {
        let base = "[a]\nx = 1\ny = [1, 2, 3]\n[a.deep]\nk = 1\nl = 2\n[b]\nz = 1\n";
        let over = "[a]\ny = [9]\n[a.deep]\nk = 5\n[c]\nw = true\n";
        assert_eq!(
            merged(base, over),
            toml("[a]\nx = 1\ny = [9]\n[a.deep]\nk = 5\nl = 2\n[b]\nz = 1\n[c]\nw = true\n")
        );
    }

    #[test]
    fn a_section_of_another_kind_is_replaced_as_a_whole() {
        let base = "[router]\nkind = \"lpr\"\nlatent_dim = 16\n[other]\nkind = \"a\"\nx = 1\n";
        let over = "[router]\nkind = \"softmax_topk\"\n[other]\nkind = \"b\"\n";
        assert_eq!(
            merged(base, over),
            toml("[router]\nkind = \"softmax_topk\"\n[other]\nkind = \"b\"\nx = 1\n")
        );
        let same = "[router]\nkind = \"lpr\"\naligner = true\n";
        let both = "[router]\nkind = \"lpr\"\nlatent_dim = 16\naligner = true\n";
        assert_eq!(
            merged("[router]\nkind = \"lpr\"\nlatent_dim = 16\n", same),
            toml(both)
        );
        assert_eq!(merged("[router]\nlatent_dim = 16\n", same), toml(both));
    }

    #[test]
    fn every_key_knows_its_line() {
        let tree = tree("a.b = 1\n\n[c]\nd = [1,\n 2]\n\n[c.e]\nf = 1\n");
        let line = |key: &str| match &tree.closest(key).place {
            Place::File { line, .. } => *line,
            other => panic!("{other:?}"),
        };
        let lines = ["a.b", "c", "c.d", "c.e.f", "c.missing", "nothing"].map(line);
        assert_eq!(lines, [1, 3, 4, 8, 3, 0]);
    }

    #[test]
    fn every_syntax_error_is_listed_with_its_line() {
        let layer = parse(0, "x.toml", "[a]\nx = \ny = \"abc\nz = 3\n[b\nk = 1\n");
        assert!(!layer.complete);
        let mut lines: Vec<String> = layer
            .problems
            .iter()
            .map(|problem| problem.place.to_string())
            .collect();
        lines.sort();
        assert_eq!(lines, ["x.toml:2", "x.toml:3", "x.toml:5"]);
    }

    #[test]
    fn a_key_set_twice_is_named_and_the_rest_is_still_read() {
        let layer = parse(0, "x.toml", "[a]\nx = 1\nx = 2\n[b]\ny = 3\n");
        assert!(layer.complete);
        assert_eq!(layer.problems.len(), 1);
        let text = layer.problems[0].to_string();
        assert!(
            text.starts_with("x.toml:3: `x` is set a second time"),
            "{text}"
        );
        assert_eq!(layer.tree.closest("b.y").to_value(), Value::Integer(3));
    }

    #[test]
    fn values_of_overrides_are_toml_or_bare_words() {
        let cases = [
            ("a.b=1", Value::Integer(1)),
            (" a.b = 1.5 ", Value::Float(1.5)),
            ("a.b=true", Value::Boolean(true)),
            ("a.b=word", Value::String("word".to_owned())),
            ("a.b=\"1\"", Value::String("1".to_owned())),
            (
                "a.b=builtin:synthetic",
                Value::String("builtin:synthetic".to_owned()),
            ),
            ("a.b=x=y", Value::String("x=y".to_owned())),
            ("a.b=", Value::String(String::new())),
            (
                "a.b=[1, 2]",
                Value::Array(vec![Value::Integer(1), Value::Integer(2)]),
            ),
        ];
        for (argument, want) in cases {
            let node = parse_override(argument).expect(argument);
            assert_eq!(node.closest("a.b").to_value(), want, "{argument}");
        }
    }

    #[test]
    fn broken_overrides_say_how_to_write_them() {
        let token = format!("a.b=hf_{}", "x".repeat(30));
        let cases = [
            ("a.b", "section.key=value"),
            ("=1", "section.key=value"),
            ("a.=1", "section.key=value"),
            ("a.b=[x, y]", "--override 'data.train="),
            ("a.b=\"x", "not valid TOML"),
            (token.as_str(), "HF_TOKEN"),
        ];
        for (argument, needle) in cases {
            let text = parse_override(argument).expect_err(argument).to_string();
            assert!(text.contains(needle), "{text}");
            assert!(!text.contains("xxxx"), "{text}");
        }
    }

    #[test]
    fn a_number_beyond_the_range_is_not_an_integer() {
        let tree = tree("x = 99999999999999999999\ny = 0xff\nz = +1_000\n");
        assert_eq!(tree.closest("x").to_value(), Value::Float(1e20));
        assert_eq!(tree.closest("y").to_value(), Value::Integer(255));
        assert_eq!(tree.closest("z").to_value(), Value::Integer(1000));
    }
}
