use std::collections::BTreeMap;

use roxmltree::{Document, Node};

use super::*;
use crate::expert_tokens::{ExpertTokens, TokenShare};
use crate::history::{ExpertVectors, Line, Saved};

const HOSTILE: &str = "</script><b a=\"&\">'x";

/// A run of two layers with three experts each.
fn run(name: &str, seed: u64) -> History {
    let mut run = History {
        name: name.to_owned(),
        config: format!("[train]\nseed = {seed}\nrun_dir = {name:?}\n[router]\nkind = \"lpr\"\n"),
        ..History::default()
    };
    let layer = |counts: [u64; 3]| serde_json::json!({"gini": 0.5, "min_max_ratio": 0.0, "cv": 1.0, "dead_experts": 1, "counts": counts});
    for step in 1..=50 {
        let line = serde_json::json!({
            "step": step, "tokens_seen": 10 * step, "loss_ce": 5.0 / step as f64, "loss_total": 6.0,
            "aux.kl": 0.5, "aux.alignment": null, "grad_norm": 1.0, "lr": 1e-3, "tok_s": 100.0,
            "data_wait_ms": 0.1, "step_time_ms": 2.0, "gini": 0.5, "min_max_ratio": 0.0,
            "dead_experts": 2, "gini_ema": 0.4, "min_max_ratio_ema": 0.1,
            "layers": [layer([step, 0, 7]), layer([1, 2, 3])],
        });
        match Line::parse(&line.to_string()) {
            Some(Line::Step(point)) => run.steps.push(point),
            other => panic!("{other:?}"),
        }
    }
    let line = serde_json::json!({"step": 50, "eval": {"loss": 2.5, "perplexity": 12.2, "tokens": 99,
        "gini": 0.25, "min_max_ratio": 0.125, "dead_experts": 0,
        "layers": [layer([4, 4, 4]), layer([0, 6, 6])]}});
    match Line::parse(&line.to_string()) {
        Some(Line::Evaluation(point)) => run.evaluations.push(point),
        other => panic!("{other:?}"),
    }
    let vectors = |block| ExpertVectors {
        block,
        are_prototypes: true,
        rows: vec![vec![1.0, 0.0], vec![0.0, 1.0], vec![-1.0, 0.5]],
    };
    run.saved = Some(Saved {
        step: 50,
        data_fingerprint: "f00d".to_owned(),
        vectors: vec![vectors(0), vectors(1)],
    });
    let token = TokenShare {
        id: 3,
        text: HOSTILE.to_owned(),
        count: 5,
        share: 0.5,
    };
    run.expert_tokens = Some(ExpertTokens {
        step: 50,
        tokens: 77,
        layers: vec![vec![vec![token], vec![], vec![]]; 2],
    });
    run.environment = BTreeMap::from([("cpu".to_owned(), "a <cpu>".into())]);
    run
}

/// The page as a tree; style and script are no XML and must not end early.
fn parse(page: &str) -> String {
    let mut text = page.replacen("<!DOCTYPE html>", "", 1);
    for (start, end) in [("<style>", "</style>"), ("<script>", "</script>")] {
        assert_eq!(text.matches(start).count(), 1, "{start}");
        assert_eq!(text.matches(end).count(), 1, "{end}");
        let from = text.find(start).expect("counted");
        let to = text.find(end).expect("counted") + end.len();
        text.replace_range(from..to, "");
    }
    text
}

fn elements<'a>(document: &'a Document<'a>, name: &str) -> Vec<Node<'a, 'a>> {
    let all = document.descendants();
    all.filter(|node| node.tag_name().name() == name).collect()
}

fn has_class(node: &Node<'_, '_>, class: &str) -> bool {
    let classes = node.attribute("class").unwrap_or("");
    classes.split(' ').any(|one| one == class)
}

/// A drawn thing: a line, dot, cell or area that belongs to no axis.
fn is_mark(node: &Node<'_, '_>) -> bool {
    let drawn = ["polyline", "circle", "rect", "path"].contains(&node.tag_name().name());
    drawn && !node.ancestors().any(|above| has_class(&above, "axes"))
}

fn texts(node: Node<'_, '_>) -> String {
    let all = node.descendants().filter(Node::is_text);
    all.filter_map(|n| n.text()).collect()
}

#[test]
fn every_plot_has_a_title_axes_marks_for_every_series_and_a_table_twin() {
    let page = parse(&report(&[run("first", 1)]));
    let document = Document::parse(&page).expect("well-formed");
    let figures = elements(&document, "figure");
    // Loss, two terms (one of them without a number), gradient norm, rate; map, Lorenz; balance;
    // two layers of prototypes; speed.
    assert_eq!(figures.len(), 4 + 2 + 3 + 4 + 3);
    for figure in figures {
        let title = figure.descendants().find(|n| n.has_tag_name("h3"));
        let title = texts(title.expect("a title"));
        let drawing = figure
            .descendants()
            .find(|n| n.has_tag_name("svg") && n.attribute("role") == Some("img"));
        let drawing = drawing.unwrap_or_else(|| panic!("{title}: no drawing"));
        assert!(
            drawing
                .attribute("aria-label")
                .is_some_and(|l| !l.is_empty()),
            "{title}"
        );
        let axes = drawing.descendants().find(|n| has_class(n, "axes"));
        let labels = axes.map(|axes| {
            axes.descendants()
                .filter(|n| n.has_tag_name("text"))
                .count()
        });
        assert!(
            labels.is_some_and(|labels| labels >= 4),
            "{title}: {labels:?}"
        );
        assert!(
            drawing.descendants().any(|n| is_mark(&n)),
            "{title}: nothing is drawn"
        );
        for series in drawing.descendants().filter(|n| has_class(n, "series")) {
            assert!(
                series.descendants().any(|n| is_mark(&n)),
                "{title}: an empty series"
            );
        }
        let rows = figure
            .descendants()
            .filter(|n| n.has_tag_name("tr"))
            .count();
        assert!(rows > 1, "{title}: no numbers");
        for row in figure.descendants().filter(|n| n.has_tag_name("tr")) {
            let width = |row: Node<'_, '_>| row.children().filter(Node::is_element).count();
            let head = figure
                .descendants()
                .find(|n| n.has_tag_name("tr"))
                .map(width);
            assert_eq!(Some(width(row)), head, "{title}: a row of another length");
        }
    }
}

#[test]
fn the_load_map_has_a_frame_per_moment_and_a_letter_per_cell() {
    let page = parse(&report(&[run("first", 1)]));
    let document = Document::parse(&page).expect("well-formed");
    let all = document.descendants();
    let frames: Vec<&str> = all.filter_map(|n| n.attribute("data-frames")).collect();
    let [frames] = frames.as_slice() else {
        panic!("{frames:?}")
    };
    let frames: Vec<&str> = frames.split(';').collect();
    assert_eq!(frames.len(), 25);
    assert!(
        frames
            .iter()
            .all(|frame| frame.split(':').nth(1).is_some_and(|c| c.len() == 6))
    );
    let cells = elements(&document, "rect");
    let classes: String = cells
        .iter()
        .filter_map(|cell| cell.attribute("class")?.strip_prefix("cell h"))
        .collect();
    assert_eq!(frames[24], format!("50:{classes}"));
    let slider = elements(&document, "input")[0];
    assert_eq!(
        (slider.attribute("max"), slider.attribute("value")),
        (Some("24"), Some("24"))
    );
}

#[test]
fn foreign_text_stays_text_and_nothing_is_fetched() {
    let mut hostile = run(HOSTILE, 1);
    hostile.problems.push(HOSTILE.to_owned());
    let page = report(&[hostile]);
    let tree = parse(&page);
    let document = Document::parse(&tree).expect("well-formed");
    assert!(elements(&document, "b").is_empty());
    // Blanks of tokens are made visible.
    let told = texts(document.root_element()).replace('\u{2423}', " ");
    // Title and heading, the problem, a token in each layer.
    assert_eq!(told.matches(HOSTILE).count(), 5);
    assert!(told.contains("a <cpu>") && told.contains("f00d"));
    for fetched in ["http:", "https:", "src=", "href=", "@import", "url("] {
        assert!(!page.contains(fetched), "{fetched}");
    }
}

#[test]
fn a_comparison_draws_every_run_and_lists_only_what_differs() {
    let runs = [run("first", 1), run("second", 2)];
    let page = parse(&comparison(&runs));
    let document = Document::parse(&page).expect("well-formed");
    let figures = elements(&document, "figure");
    assert_eq!(figures.len(), 7);
    for figure in figures {
        let series = figure.descendants().filter(|n| has_class(n, "series"));
        let names: Vec<String> = series
            .filter(|series| series.descendants().any(|n| is_mark(&n)))
            .filter_map(|series| series.first_element_child().map(texts))
            .collect();
        assert_eq!(names, ["first", "second"]);
    }
    let differences = config_differences(&runs);
    assert_eq!(differences.rows, [["train.seed", "1", "2"]]);
    let figures = figures_by_name(&runs);
    assert_eq!(figures["validation loss, nats"], ["2.500", "2.500"]);
    assert_eq!(
        figures["Gini, as in the paper (EMA in training)"],
        ["0.4000", "0.4000"]
    );
}

fn figures_by_name(runs: &[History]) -> BTreeMap<String, Vec<String>> {
    let rows = figures(runs).rows.into_iter();
    rows.map(|row| (row[0].clone(), row[1..].to_vec()))
        .collect()
}

#[test]
fn several_runs_have_a_panel_each_and_an_empty_run_is_no_error() {
    let empty = History {
        name: "empty".to_owned(),
        ..History::default()
    };
    let page = parse(&report(&[run("first", 1), empty]));
    let document = Document::parse(&page).expect("well-formed");
    let tabs: Vec<_> = document
        .descendants()
        .filter(|n| n.attribute("data-tabs") == Some("run"))
        .collect();
    let panels = tabs[0].children().filter(|n| has_class(n, "panel"));
    let panels: Vec<Node<'_, '_>> = panels.collect();
    assert_eq!(panels.len(), 2);
    assert!(texts(panels[1]).contains("Nothing was logged yet."));
}
