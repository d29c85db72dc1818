//! The report of runs: one HTML file that needs no network and no server.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use crate::history::{History, Point};

mod curves;
mod experts;
pub mod html;
mod pca;
#[cfg(test)]
mod tests;

use html::{Figure, Table, escape, facts, number, tabs};

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("page.js");

/// The page of one run, or of several: then side by side first, and each of them after that.
pub fn report(runs: &[History]) -> String {
    if let [run] = runs {
        return document(&run.name, &sections(run));
    }
    let panel = |run: &History| (run.name.clone(), sections(run));
    let panels: Vec<(String, String)> = runs.iter().map(panel).collect();
    let body = format!("{}{}", side_by_side(runs), tabs("run", &panels));
    document(&names(runs), &body)
}

/// The page of several runs on top of each other.
pub fn comparison(runs: &[History]) -> String {
    document(&names(runs), &side_by_side(runs))
}

/// A figure of a run, if it has it.
type Value<'a> = &'a dyn Fn(&History) -> Option<f64>;

/// The newest figures of every run: a row per figure, a column per run.
pub fn figures(runs: &[History]) -> Table {
    let mut table = Table::new(&["figure"]);
    table.head.extend(runs.iter().map(|run| run.name.clone()));
    let evaluated = |key: &'static str| {
        move |run: &History| run.evaluations.last().map(|point| point.value(key))
    };
    let trained =
        |key: &'static str| move |run: &History| run.steps.last().map(|point| point.value(key));
    let rows: [(&str, Value<'_>); 13] = [
        ("steps", &trained("step")),
        ("tokens trained on", &trained("tokens_seen")),
        ("training loss, nats", &trained("loss_ce")),
        ("validation loss, nats", &evaluated("loss")),
        ("validation perplexity", &evaluated("perplexity")),
        ("validation tokens", &evaluated("tokens")),
        ("Gini, exact on validation", &evaluated("gini")),
        (
            "min-max ratio, exact on validation",
            &evaluated("min_max_ratio"),
        ),
        (
            "experts without a token on validation",
            &evaluated("dead_experts"),
        ),
        (
            "Gini, as in the paper (EMA in training)",
            &trained("gini_ema"),
        ),
        (
            "min-max ratio, as in the paper",
            &trained("min_max_ratio_ema"),
        ),
        ("tokens per second", &trained("tok_s")),
        ("waiting for data, ms per step", &trained("data_wait_ms")),
    ];
    for (name, value) in rows {
        let mut row = vec![name.to_owned()];
        row.extend(
            runs.iter()
                .map(|run| number(value(run).unwrap_or(f64::NAN))),
        );
        table.rows.push(row);
    }
    table
}

/// The keys of the configuration that are not the same in all runs, but for the folder of the run.
pub fn config_differences(runs: &[History]) -> Table {
    let mut table = Table::new(&["key"]);
    table.head.extend(runs.iter().map(|run| run.name.clone()));
    let configs: Vec<_> = runs.iter().map(History::config_keys).collect();
    let keys: BTreeSet<&String> = configs.iter().flat_map(|keys| keys.keys()).collect();
    for key in keys {
        let values: Vec<Option<&String>> = configs.iter().map(|keys| keys.get(key)).collect();
        if key == "train.run_dir" || values.windows(2).all(|pair| pair[0] == pair[1]) {
            continue;
        }
        let text = |value: Option<&String>| value.map_or_else(|| "-".to_owned(), Clone::clone);
        let mut row = vec![key.clone()];
        row.extend(values.into_iter().map(text));
        table.rows.push(row);
    }
    table
}

fn names(runs: &[History]) -> String {
    let names: Vec<&str> = runs.iter().map(|run| run.name.as_str()).collect();
    names.join(", ")
}

fn document(title: &str, body: &str) -> String {
    let title = escape(title);
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
         <meta name=\"color-scheme\" content=\"light dark\"/>\n\
         <title>{title} - lpr-train</title>\n<style>\n{STYLE}</style></head>\n<body><main>\n\
         <header><p class=\"product\">lpr-train</p><h1>{title}</h1></header>\n{body}\
         </main><script>\n{SCRIPT}</script></body></html>\n"
    )
}

fn section(title: &str, note: &str, content: &str) -> String {
    if content.is_empty() {
        return String::new();
    }
    let note = if note.is_empty() {
        String::new()
    } else {
        format!("<p class=\"note\">{}</p>\n", escape(note))
    };
    format!(
        "<section><h2>{}</h2>\n{note}{content}</section>\n",
        escape(title)
    )
}

fn grid(figures: &[Figure]) -> String {
    if figures.is_empty() {
        return String::new();
    }
    let mut html = "<div class=\"grid\">\n".to_owned();
    for figure in figures {
        html.push_str(&figure.html());
    }
    html.push_str("</div>\n");
    html
}

fn side_by_side(runs: &[History]) -> String {
    let differences = config_differences(runs);
    let differences = if differences.rows.is_empty() {
        "<p>None.</p>".to_owned()
    } else {
        differences.html("Differences between the configurations")
    };
    section("Figures", "", &figures(runs).html("Newest figures"))
        + &section("Over time", "", &grid(&curves::overlay(runs)))
        + &section("Differences between the configurations", "", &differences)
}

/// Everything about one run.
fn sections(run: &History) -> String {
    let mut html = tiles(run);
    if !run.problems.is_empty() {
        html.push_str("<ul class=\"problems\">\n");
        for problem in &run.problems {
            let _ = writeln!(html, "<li>{}</li>", escape(problem));
        }
        html.push_str("</ul>\n");
    }
    if run.steps.last().is_none() && run.evaluations.last().is_none() {
        html.push_str("<p>Nothing was logged yet.</p>\n");
    }
    let thinning = curves::thinning(run).unwrap_or_default();
    html.push_str(&section("Loss", &thinning, &grid(&curves::losses(run))));
    let mut load: Vec<Figure> = experts::load_map(run).into_iter().collect();
    load.extend(experts::lorenz(run));
    html.push_str(&section("Expert load", "", &grid(&load)));
    let mut balance = grid(&curves::balance(run));
    if let Some((caption, table)) = experts::layer_table(run) {
        let caption = escape(&caption);
        let _ = write!(balance, "<h3>{caption}</h3>{}", table.html(&caption));
    }
    html.push_str(&section("Balance over time", "", &balance));
    let router = experts::vectors(run).unwrap_or_default();
    let of = run.saved.as_ref().map_or(0, |saved| saved.step);
    let note = format!(
        "The {} in the checkpoint of step {of}.",
        experts::vectors_name(run)
    );
    html.push_str(&section("Router", &note, &router));
    let tokens = experts::tokens(run).unwrap_or_default();
    html.push_str(&section(
        "Tokens of the experts",
        &tokens_note(run),
        &tokens,
    ));
    html.push_str(&section("Speed", "", &grid(&curves::speed(run))));
    html.push_str(&section("This run", "", &origin(run)));
    html
}

fn tokens_note(run: &History) -> String {
    let found = run.expert_tokens.as_ref();
    let (tokens, step) = found.map_or((0, 0), |found| (found.tokens, found.step));
    format!(
        "Counted on the first {} tokens of the validation data after step {step}. Listed are those \
         that add most to the mutual information of token and expert, and how often the expert was \
         among the chosen ones when the token came up. Load 1 is even.",
        number(tokens as f64)
    )
}

/// The newest figures in large type.
fn tiles(run: &History) -> String {
    let evaluation = run.evaluations.last();
    let step = run.steps.last();
    let mut tiles: Vec<(&str, String)> = Vec::new();
    let mut tile = |point: Option<&Point>, key: &str, name: &'static str| {
        let value = point.map_or(f64::NAN, |point| point.value(key));
        if value.is_finite() {
            tiles.push((name, number(value)));
        }
    };
    tile(evaluation, "loss", "validation loss, nats");
    tile(evaluation, "perplexity", "validation perplexity");
    tile(evaluation, "gini", "Gini, validation");
    tile(evaluation, "min_max_ratio", "min-max ratio, validation");
    tile(evaluation, "dead_experts", "experts without a token");
    tile(step, "tokens_seen", "tokens trained on");
    let skipped = step.map_or(0.0, |point| point.value("skipped_total"));
    if skipped > 0.0 {
        tiles.push(("steps that were not taken", number(skipped)));
    }
    let mut html = "<dl class=\"tiles\">\n".to_owned();
    for (name, value) in tiles {
        let _ = writeln!(html, "<div><dt>{name}</dt><dd>{value}</dd></div>");
    }
    html.push_str("</dl>\n");
    html
}

/// Where the run comes from: configuration, machine, data.
fn origin(run: &History) -> String {
    let mut entries: Vec<(String, String)> = Vec::new();
    if let Some(saved) = &run.saved {
        entries.push((
            "data fingerprint".to_owned(),
            saved.data_fingerprint.clone(),
        ));
        entries.push((
            "newest checkpoint".to_owned(),
            format!("step {}", saved.step),
        ));
    }
    for (name, value) in &run.environment {
        let text = value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned);
        entries.push((name.replace('_', " "), text));
    }
    format!(
        "{}<details><summary>Configuration, every key as used</summary>\
         <pre tabindex=\"0\">{}</pre></details>",
        facts(&entries),
        escape(run.config.trim_end())
    )
}
