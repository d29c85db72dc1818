//! What the experts do: load, Lorenz curves, prototypes, tokens.

use std::fmt::Write as _;

use super::html::{Figure, Table, escape, number, tabs};
use super::pca::{cosines, plane};
use crate::expert_tokens::TokenShare;
use crate::history::{ExpertVectors, History, Point};
use crate::plot::{Color, Dot, Frame, LinePlot, LoadMap, ScatterPlot, Series, similarity_map};

/// Moments that the slider of the load map goes through.
const FRAMES: usize = 40;
/// Cells of similarity maps that a page holds; of more layers the first, middle and last are shown.
const SIMILARITY_CELLS: usize = 200_000;

/// The load map of the training windows, and of evaluations if nothing was logged.
pub fn load_map(run: &History) -> Option<Figure> {
    let of_steps: Vec<&Point> = run.steps.iter().collect();
    let points = if of_steps.is_empty() {
        run.evaluations.iter().collect()
    } else {
        of_steps
    };
    let shape = |point: &Point| -> Vec<usize> {
        point
            .layers
            .iter()
            .map(|layer| layer.counts.len())
            .collect()
    };
    let newest = shape(points.last()?);
    let every = points.len().div_ceil(FRAMES).max(1);
    let last = points.len() - 1;
    let frames = points.iter().enumerate().filter_map(|(index, point)| {
        let shown = (last - index).is_multiple_of(every) && shape(point) == newest;
        shown.then(|| Frame {
            step: point.step,
            counts: point
                .layers
                .iter()
                .map(|layer| layer.counts.clone())
                .collect(),
        })
    });
    LoadMap {
        frames: frames.collect(),
    }
    .figure()
}

/// How unequal the load of the newest evaluation is, or of the newest window without one.
pub fn lorenz(run: &History) -> Option<Figure> {
    let (point, of) = newest_load(run)?;
    let layers = point.layers.len();
    let mut series = vec![Series::new(
        "even",
        Color::Reference,
        vec![(0.0, 0.0), (1.0, 1.0)],
    )];
    for (layer, load) in point.layers.iter().enumerate() {
        let name = format!("layer {layer}");
        series.push(Series::new(
            name,
            Color::of(layer, layers),
            lorenz_curve(&load.counts),
        ));
    }
    LinePlot {
        title: "Lorenz curves of expert load".to_owned(),
        note: format!(
            "What part of all choices the least used experts share; {of}. The farther below the \
             straight line, the less even."
        ),
        x: "part of the experts, least used first".to_owned(),
        y: "part of the choices".to_owned(),
        series,
        include: vec![0.0, 1.0],
    }
    .figure()
}

/// The figures of every layer in the newest evaluation, or window.
pub fn layer_table(run: &History) -> Option<(String, Table)> {
    let (point, of) = newest_load(run)?;
    let keys = [
        ("gini", "Gini"),
        ("min_max_ratio", "min-max ratio"),
        ("cv", "variation"),
        ("max_over_mean", "largest over mean"),
        ("normalized_entropy", "entropy, 1 is even"),
        ("dead_experts", "without a token"),
    ];
    let mut table = Table::new(&["layer"]);
    table.head.extend(keys.map(|(_, name)| name.to_owned()));
    for (layer, load) in point.layers.iter().enumerate() {
        let value = |key: &str| load.values.get(key).copied().unwrap_or(f64::NAN);
        let numbers = keys.map(|(key, _)| number(value(key)));
        table
            .rows
            .push([vec![layer.to_string()], numbers.to_vec()].concat());
    }
    Some((format!("Expert load by layer, {of}"), table))
}

fn newest_load(run: &History) -> Option<(&Point, String)> {
    if let Some(point) = run.evaluations.last() {
        return Some((point, format!("validation data after step {}", point.step)));
    }
    let point = run.steps.last()?;
    Some((point, format!("training window up to step {}", point.step)))
}

/// Points of the Lorenz curve: parts of the experts and of the load.
fn lorenz_curve(counts: &[u64]) -> Vec<(f64, f64)> {
    let mut ascending = counts.to_vec();
    ascending.sort_unstable();
    let total = ascending.iter().sum::<u64>().max(1) as f64;
    let mut sum = 0;
    let mut points = vec![(0.0, 0.0)];
    for (index, count) in ascending.iter().enumerate() {
        sum += count;
        let part = (index + 1) as f64 / counts.len() as f64;
        points.push((part, sum as f64 / total));
    }
    points
}

/// Similarity and map of the vectors by which each layer tells its experts apart.
pub fn vectors(run: &History) -> Option<String> {
    let saved = run.saved.as_ref()?;
    let layers = &saved.vectors;
    let cells: usize = layers.iter().map(|layer| layer.rows.len().pow(2)).sum();
    let mut shown: Vec<usize> = (0..layers.len()).collect();
    if cells > SIMILARITY_CELLS {
        shown = vec![0, layers.len() / 2, layers.len() - 1];
        shown.dedup();
    }
    if shown.is_empty() {
        return None;
    }
    let load = newest_load(run).map(|(point, _)| point);
    let panels: Vec<(String, String)> = shown
        .into_iter()
        .map(|layer| {
            let counts = load.and_then(|point| point.layers.get(layer));
            let counts = counts.map_or(&[][..], |layer| &layer.counts);
            (
                format!("layer {layer}"),
                vectors_of_layer(&layers[layer], counts),
            )
        })
        .collect();
    Some(tabs("layer", &panels))
}

/// What the vectors of the routers are called.
pub fn vectors_name(run: &History) -> &'static str {
    let layers = run.saved.iter().flat_map(|saved| &saved.vectors);
    if layers.clone().any(|layer| layer.are_prototypes) {
        "prototypes"
    } else {
        "router weights of the experts"
    }
}

fn vectors_of_layer(vectors: &ExpertVectors, counts: &[u64]) -> String {
    let what = if vectors.are_prototypes {
        "prototypes"
    } else {
        "router weights"
    };
    let plane = plane(&vectors.rows);
    let total: u64 = counts.iter().sum();
    let size = |expert: usize| match counts.get(expert) {
        Some(&count) if total > 0 => count as f64 * counts.len() as f64 / total as f64,
        _ => 1.0,
    };
    let dots = plane
        .points
        .iter()
        .enumerate()
        .map(|(expert, &[x, y])| Dot {
            name: expert.to_string(),
            x,
            y,
            size: size(expert),
        });
    let percent = plane.explained.map(|part| format!("{:.0} %", 100.0 * part));
    let map = ScatterPlot {
        title: format!("Map of the {what}"),
        note: "A dot is an expert, its area the load; a ring has none.".to_owned(),
        axes: [
            format!("first principal component, {} of the variance", percent[0]),
            format!("second, {}", percent[1]),
            "load, 1 is even".to_owned(),
        ],
        dots: dots.collect(),
    };
    let similarity = similarity_map(
        &format!("Similarity of the {what}"),
        &cosines(&vectors.rows),
    );
    let map = map.figure().map_or_else(String::new, |map| map.html());
    format!("<div class=\"grid\">{}{map}</div>", similarity.html())
}

/// The tokens that say most about each expert.
pub fn tokens(run: &History) -> Option<String> {
    let found = run.expert_tokens.as_ref()?;
    let load = newest_load(run).map(|(point, _)| point);
    let panels: Vec<(String, String)> = found
        .layers
        .iter()
        .enumerate()
        .map(|(layer, experts)| {
            let counts = load.and_then(|point| point.layers.get(layer));
            let total: u64 = counts.iter().flat_map(|layer| &layer.counts).sum();
            let load = |expert: usize| {
                let count = counts.and_then(|layer| layer.counts.get(expert));
                count.map_or(f64::NAN, |&count| {
                    count as f64 * experts.len() as f64 / total.max(1) as f64
                })
            };
            (format!("layer {layer}"), token_table(layer, experts, &load))
        })
        .collect();
    (!panels.is_empty()).then(|| tabs("layer", &panels))
}

fn token_table(layer: usize, experts: &[Vec<TokenShare>], load: &dyn Fn(usize) -> f64) -> String {
    let mut html = format!(
        "<div class=\"scroll words\" tabindex=\"0\" role=\"region\" aria-label=\"tokens\"><table>\
         <caption>Tokens of the experts of layer {layer}</caption><thead><tr>\
         <th scope=\"col\">expert</th><th scope=\"col\">load</th>\
         <th scope=\"col\">tokens, share of their uses</th></tr></thead><tbody>\n"
    );
    for (expert, tokens) in experts.iter().enumerate() {
        let load = number((load(expert) * 100.0).round() / 100.0);
        let _ = write!(
            html,
            "<tr><th scope=\"row\">{expert}</th><td>{load}</td><td>"
        );
        for token in tokens {
            let _ = write!(
                html,
                "<span class=\"token\">{}<small>{:.0} %</small></span>",
                escape(&token_text(token)),
                100.0 * token.share
            );
        }
        html.push_str("</td></tr>\n");
    }
    html.push_str("</tbody></table></div>");
    html
}

/// A token with visible blanks; its number if it has no text of its own.
fn token_text(token: &TokenShare) -> String {
    if token.text.is_empty() || token.text.contains('\u{fffd}') {
        return format!("#{}", token.id);
    }
    let visible = token
        .text
        .replace(' ', "\u{2423}")
        .replace('\n', "\u{21b5}");
    visible.replace('\t', "\u{21e5}").replace('\r', "\u{240d}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lorenz_curve_of_an_even_load_is_straight() {
        assert_eq!(lorenz_curve(&[5, 5]), [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)]);
        assert_eq!(lorenz_curve(&[8, 0]), [(0.0, 0.0), (0.5, 0.0), (1.0, 1.0)]);
    }

    #[test]
    fn blanks_in_tokens_can_be_seen() {
        let token = |text: &str| TokenShare {
            id: 7,
            text: text.to_owned(),
            count: 1,
            share: 0.256,
        };
        assert_eq!(token_text(&token(" a\n")), "\u{2423}a\u{21b5}");
        assert_eq!(token_text(&token("\u{fffd}")), "#7");
    }
}
