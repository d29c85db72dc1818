//! `router.preset` becomes the keys that it stands for.

use std::collections::BTreeMap;

use lpr_model::router::{PRESET_KEY, Preset};
use toml::Value;

use super::layers::{Item, Node};

/// The section with presets, the key that selects its kind, and the kind that has them.
const SECTION: &str = "router";
const TAG: &str = "kind";
const KIND: &str = "lpr";

/// Replaces the preset of `layer` by its keys; keys that the layer sets itself win. `base` is what
/// the layer is going to be laid onto.
///
/// Because this happens layer by layer, a preset wins over keys of earlier layers: what stands in a
/// later file or an override is never without effect. A preset that is not known, or belongs to
/// another kind of router, stays where it is, for the schema to complain about.
pub fn expand(layer: &mut Node, base: &Node) {
    let Item::Table(sections) = &mut layer.item else {
        return;
    };
    let Some(Node {
        item: Item::Table(keys),
        ..
    }) = sections.get_mut(SECTION)
    else {
        return;
    };
    let kind = keys.get(TAG).or_else(|| get(get(Some(base), SECTION), TAG));
    if kind.is_some_and(|kind| kind.to_value().as_str() != Some(KIND)) {
        return;
    }
    let preset = keys
        .get(PRESET_KEY)
        .and_then(|node| node.to_value().as_str()?.parse::<Preset>().ok());
    let (Some(preset), Some(node)) = (preset, keys.get(PRESET_KEY).cloned()) else {
        return;
    };
    keys.remove(PRESET_KEY);
    for (key, value) in values(preset) {
        keys.entry(key).or_insert_with(|| Node {
            place: node.place.clone(),
            item: Item::Scalar(value),
        });
    }
}

/// The keys of a preset and their values.
fn values(preset: Preset) -> BTreeMap<String, Value> {
    let config = Value::try_from(preset.config());
    let Ok(Value::Table(mut config)) = config else {
        unreachable!("a router's configuration consists of numbers and words");
    };
    Preset::KEYS
        .iter()
        .filter_map(|key| Some(((*key).to_owned(), config.remove(*key)?)))
        .collect()
}

/// The entry `key` of a table, if there is one.
fn get<'a>(node: Option<&'a Node>, key: &str) -> Option<&'a Node> {
    match &node?.item {
        Item::Table(table) => table.get(key),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ConfigErrors, RunConfig};
    use lpr_model::RouterConfig;
    use lpr_model::router::{LprConfig, Preset};

    const REST: &str = r#"
[model]
family = "qwen3_moe"
vocab_size = 257
hidden_size = 32
num_hidden_layers = 2
num_attention_heads = 4
num_key_value_heads = 2
head_dim = 8
moe_intermediate_size = 16
num_experts = 8
top_k = 2
[data]
train = ["a.parquet"]
[train]
total_steps = 1
"#;

    fn load(router: &[&str], overrides: &[&str]) -> Result<RunConfig, ConfigErrors> {
        let folder = tempfile::tempdir().expect("temporary folder");
        let mut files = vec![REST.to_owned()];
        files.extend(router.iter().map(|keys| format!("[router]\n{keys}\n")));
        let write = |(index, text): (usize, &String)| {
            let path = folder.path().join(format!("layer-{index}.toml"));
            std::fs::write(&path, text).expect("written");
            path
        };
        let paths: Vec<_> = files.iter().enumerate().map(write).collect();
        let overrides: Vec<String> = overrides.iter().map(ToString::to_string).collect();
        RunConfig::load(&paths, &overrides)
    }

    fn lpr(router: &[&str], overrides: &[&str]) -> LprConfig {
        let config = load(router, overrides).unwrap_or_else(|errors| panic!("{errors}"));
        let again = RunConfig::parse("resolved", &config.to_toml(), &[]).expect("loads");
        assert_eq!(again, config);
        let text = config.to_toml();
        for key in Preset::KEYS {
            assert!(text.contains(&format!("\n{key} = ")), "{key} is not shown");
        }
        assert!(!text.contains("preset"), "{text}");
        let RouterConfig::Lpr(config) = config.router else {
            panic!("another router")
        };
        config
    }

    #[test]
    fn a_preset_sets_its_keys_and_keys_beside_it_win() {
        for (name, preset) in Preset::ALL {
            let keys = format!("kind = \"lpr\"\npreset = \"{name}\"");
            assert_eq!(lpr(&[&keys], &[]), preset.config());
            let keys = format!("aligner = false\n{keys}\nema_decay = 0.5\nlatent_dim = 8");
            let want = LprConfig {
                aligner: false,
                ema_decay: 0.5,
                latent_dim: 8,
                ..preset.config()
            };
            assert_eq!(lpr(&[&keys], &[]), want);
        }
    }

    #[test]
    fn a_later_preset_wins_over_earlier_keys_but_leaves_sizes_alone() {
        let first =
            "kind = \"lpr\"\nlatent_dim = 8\naligner = true\nkl_weight = 0.5\nequiv_accum = 18";
        let paper = LprConfig {
            latent_dim: 8,
            kl_weight: 0.5,
            ..Preset::Paper.config()
        };
        assert_eq!(lpr(&[first], &["router.preset=paper"]), paper);
        assert_eq!(lpr(&[first, "preset = \"paper\""], &[]), paper);
        let both = LprConfig {
            aligner: true,
            ..paper
        };
        // Overrides form one layer, whatever their order.
        let overrides = ["router.aligner=true", "router.preset=paper"];
        assert_eq!(lpr(&[first], &overrides), both);
        // A later key wins over an earlier preset.
        let files = [first, "preset = \"paper\"", "aligner = true"];
        assert_eq!(lpr(&files, &[]), both);
        let clean = [
            "router.preset=clean",
            "router.kl_weight=0.01",
            "router.latent_dim=16",
        ];
        assert_eq!(lpr(&files, &clean), Preset::Clean.config());
    }

    #[test]
    fn unknown_presets_and_those_of_other_routers_are_refused_with_advice() {
        let message = |router: &str, overrides: &[&str]| {
            load(&[router], overrides).expect_err("refused").to_string()
        };
        let text = message("kind = \"lpr\"\npreset = \"offical\"", &[]);
        let all = "one of \"official\", \"paper\", \"clean\"";
        assert!(
            text.contains("router.preset") && text.contains(all),
            "{text}"
        );
        let text = message("kind = \"softmax_topk\"", &["router.preset=paper"]);
        assert!(text.contains("it belongs to kind = \"lpr\""), "{text}");
        // What a preset says is blamed on the line of the preset.
        let text = message(
            "kind = \"lpr\"\nsimilarity = \"kl\"\npreset = \"paper\"",
            &[],
        );
        assert!(
            text.contains("layer-1.toml:4") && text.contains("router.score"),
            "{text}"
        );
    }
}
