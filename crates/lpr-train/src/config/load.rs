//! From files and overrides to a checked [`RunConfig`], and back to a file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use toml::Value;

use super::layers::{self, Item, Layer, Node};
use super::problem::{ConfigErrors, Place, Problem};
use super::schema::Schema;
use super::{RunConfig, preset, rules};
use crate::sha256;

impl RunConfig {
    /// Reads `files` from left to right, then `section.key=value` arguments, each over what came
    /// before.
    ///
    /// Tables merge key by key, lists and values are replaced, and a section whose kind changes
    /// (`model.family`, `router.kind`) is replaced as a whole. `router.preset` stands for a set of
    /// keys at its place: it wins over earlier layers, and keys of its own layer win over it. Keys
    /// that follow from others are filled in, so that the resolved configuration says what was
    /// used.
    ///
    /// # Errors
    /// Every problem of every layer at once, each with its place, the allowed values and what to
    /// do.
    pub fn load(files: &[PathBuf], overrides: &[String]) -> Result<Self, ConfigErrors> {
        let read = |(index, path): (usize, &PathBuf)| layer(index, path);
        let layers = files.iter().enumerate().map(read).collect();
        Self::from_layers(layers, overrides, files.last().map(PathBuf::as_path))
    }

    /// Like [`Self::load`] with the text `base`, which `name` names in messages, below all files.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_over(
        name: &str,
        base: &str,
        files: &[PathBuf],
        overrides: &[String],
    ) -> Result<Self, ConfigErrors> {
        let base = layers::parse(0, name, base);
        let files_read = files.iter().enumerate().map(|(i, path)| layer(i + 1, path));
        let layers = std::iter::once(base).chain(files_read).collect();
        let last = files.last().map_or(Path::new(name), PathBuf::as_path);
        Self::from_layers(layers, overrides, Some(last))
    }

    /// Like [`Self::load`] for the text of one file, which `name` names in messages.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn parse(name: &str, text: &str, overrides: &[String]) -> Result<Self, ConfigErrors> {
        Self::from_layers(
            vec![layers::parse(0, name, text)],
            overrides,
            Some(Path::new(name)),
        )
    }

    fn from_layers(
        layers: Vec<Layer>,
        overrides: &[String],
        last_file: Option<&Path>,
    ) -> Result<Self, ConfigErrors> {
        let schema = Schema::of::<Self>();
        let tags = schema.tags();
        let mut problems = Vec::new();
        let mut complete = true;
        // Messages about the whole configuration name the last file: it is the one that was to
        // complete it.
        let place = layers
            .last()
            .map_or(Place::Nowhere, |layer| layer.tree.place.clone());
        let empty = || Node {
            place: place.clone(),
            item: Item::Table(BTreeMap::new()),
        };
        let mut tree = empty();
        for mut layer in layers {
            problems.extend(layer.problems);
            complete &= layer.complete;
            preset::expand(&mut layer.tree, &tree);
            layers::merge(&mut tree, layer.tree, &tags);
        }
        // All overrides form one layer, so that their order does not matter where one selects a
        // kind.
        let mut last = empty();
        for argument in overrides {
            match layers::parse_override(argument) {
                Ok(node) => layers::merge(&mut last, node, &[]),
                Err(problem) => problems.push(problem),
            }
        }
        preset::expand(&mut last, &tree);
        layers::merge(&mut tree, last, &tags);
        let mut found = Vec::new();
        let value = schema.check(&tree, &mut found);
        let config = assemble(&value);
        if complete {
            found.extend(rules::check(&value, config.as_ref().ok(), &tree, &found));
        } else {
            // What could not be understood may be what seems to be missing or wrong.
            found.retain(|problem| {
                !problem.message.starts_with("is missing") && !shares_place(problem, &problems)
            });
        }
        problems.extend(found);
        match config {
            Ok(config) if problems.is_empty() => Ok(config.resolve(last_file)),
            Err(error) if problems.is_empty() => Err(ConfigErrors::new(vec![Problem::new(
                &place,
                "",
                error.message(),
            )])),
            _ => Err(ConfigErrors::new(problems)),
        }
    }

    /// Fills in the keys whose default follows from other keys.
    fn resolve(mut self, last_file: Option<&Path>) -> Self {
        let name = last_file
            .and_then(Path::file_stem)
            .map_or("run".into(), |stem| stem.to_string_lossy());
        self.train
            .run_dir
            .get_or_insert_with(|| Path::new("runs").join(name.as_ref()));
        self.eval.max_length = Some(self.eval_max_length());
        self.eval.rows_per_batch = Some(self.eval_rows_per_batch());
        self
    }

    /// The configuration with every key written out, as a TOML file that loads to the same value.
    ///
    /// # Panics
    /// If the run folder is not UTF-8, which no TOML file can contain.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a configuration consists of numbers, words and lists")
    }

    /// SHA-256 of the resolved configuration.
    ///
    /// # Panics
    /// As [`Self::to_toml`].
    pub fn hash(&self) -> String {
        sha256::of_bytes(self.to_toml().as_bytes())
    }
}

/// One file, as far as it can be understood.
fn layer(index: usize, path: &PathBuf) -> Layer {
    match layers::read(index, path) {
        Ok(text) => layers::parse(index, &path.display().to_string(), &text),
        Err(problem) => Layer {
            tree: Node {
                place: problem.place.clone(),
                item: Item::Table(BTreeMap::new()),
            },
            problems: vec![problem],
            complete: false,
        },
    }
}

fn assemble(value: &Value) -> Result<RunConfig, toml::de::Error> {
    value.clone().try_into()
}

fn shares_place(problem: &Problem, others: &[Problem]) -> bool {
    others.iter().any(|other| other.place == problem.place)
}
