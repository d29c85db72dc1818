//! What a run's records say over time: losses, balance, speed.

use super::html::Figure;
use crate::history::{History, Point, Thinned};
use crate::plot::{Color, LinePlot, Series};

/// A figure of the records, by key.
struct Curve<'a> {
    key: &'a str,
    title: &'a str,
    y: &'a str,
    note: &'a str,
}

/// Losses, each term in a plot of its own.
pub fn losses(run: &History) -> Vec<Figure> {
    let train = Series::new(
        "training, cross-entropy",
        Color::Category(0),
        values(&run.steps, "loss_ce"),
    );
    let total = Series::new(
        "training, with router losses",
        Color::Category(6),
        values(&run.steps, "loss_total"),
    );
    let validation = Series::new(
        "validation, cross-entropy",
        Color::Category(1),
        values(&run.evaluations, "loss"),
    );
    let loss = LinePlot {
        title: "Loss".to_owned(),
        x: "step".to_owned(),
        y: "nats per token".to_owned(),
        series: vec![train, total, validation.with_dots()],
        ..LinePlot::default()
    };
    let mut figures: Vec<Figure> = loss.figure().into_iter().collect();
    for term in run.loss_terms() {
        let title = format!("Router loss: {}", term.replace('_', " "));
        let curve = Curve {
            key: &format!("aux.{term}"),
            title: &title,
            y: "not weighted",
            note: "",
        };
        figures.extend(single(run, &curve));
    }
    let norm = Curve {
        key: "grad_norm",
        title: "Gradient norm",
        y: "before clipping",
        note: "",
    };
    let rate = Curve {
        key: "lr",
        title: "Learning rate",
        y: "per step",
        note: "",
    };
    figures.extend(single(run, &norm));
    figures.extend(single(run, &rate));
    figures
}

/// Balance of every layer.
pub fn balance(run: &History) -> Vec<Figure> {
    let curves = [
        Curve {
            key: "gini",
            title: "Gini of expert load",
            y: "0 is even, 1 is one expert",
            note: "Exact counts since the line before, padding left out.",
        },
        Curve {
            key: "min_max_ratio",
            title: "Min-max ratio of expert load",
            y: "smallest load over largest",
            note: "0 as soon as one expert has no token, 1 if all have the same.",
        },
        Curve {
            key: "dead_experts",
            title: "Experts without a token",
            y: "experts",
            note: "Since the line before.",
        },
    ];
    let figures = curves.iter().filter_map(|curve| layered(run, curve));
    figures.collect()
}

/// Throughput and waiting.
pub fn speed(run: &History) -> Vec<Figure> {
    let curves = [
        Curve {
            key: "tok_s",
            title: "Throughput",
            y: "tokens per second, no padding",
            note: "",
        },
        Curve {
            key: "step_time_ms",
            title: "Time per step",
            y: "milliseconds",
            note: "",
        },
        Curve {
            key: "data_wait_ms",
            title: "Waiting for data",
            y: "milliseconds per step",
            note: "",
        },
    ];
    let figures = curves.iter().filter_map(|curve| single(run, curve));
    figures.collect()
}

/// The same curves of several runs on top of each other.
pub fn overlay(runs: &[History]) -> Vec<Figure> {
    let mut keys: Vec<(String, bool, &str, &str)> = vec![
        ("loss".to_owned(), true, "Validation loss", "nats per token"),
        (
            "loss_ce".to_owned(),
            false,
            "Training loss",
            "nats per token",
        ),
        (
            "gini".to_owned(),
            false,
            "Gini of expert load",
            "mean over layers",
        ),
        (
            "min_max_ratio".to_owned(),
            false,
            "Min-max ratio of expert load",
            "mean over layers",
        ),
        (
            "dead_experts".to_owned(),
            false,
            "Experts without a token",
            "experts, all layers",
        ),
        (
            "tok_s".to_owned(),
            false,
            "Throughput",
            "tokens per second, no padding",
        ),
    ];
    let mut terms: Vec<String> = runs.iter().flat_map(History::loss_terms).collect();
    terms.sort();
    terms.dedup();
    keys.extend(
        terms
            .into_iter()
            .map(|term| (format!("aux.{term}"), false, "", "not weighted")),
    );
    let plot = |(key, evaluated, title, y): (String, bool, &str, &str)| {
        let title = match key.strip_prefix("aux.") {
            Some(term) => format!("Router loss: {}", term.replace('_', " ")),
            None => title.to_owned(),
        };
        let series = runs.iter().enumerate().map(|(index, run)| {
            let points = if evaluated {
                &run.evaluations
            } else {
                &run.steps
            };
            let series = Series::new(&run.name, Color::Category(index), values(points, &key));
            Series {
                dots: evaluated,
                ..series
            }
        });
        let plot = LinePlot {
            title,
            x: "step".to_owned(),
            y: y.to_owned(),
            series: series.collect(),
            ..LinePlot::default()
        };
        plot.figure()
    };
    keys.into_iter().filter_map(plot).collect()
}

/// How many of the logged steps the curves show, if not all.
pub fn thinning(run: &History) -> Option<String> {
    (run.steps.stride() > 1).then(|| {
        format!(
            "Curves show one of {} logged steps ({} were logged).",
            run.steps.stride(),
            run.steps.seen()
        )
    })
}

fn values(points: &Thinned<Point>, key: &str) -> Vec<(f64, f64)> {
    let value = |point: &Point| (point.step as f64, point.value(key));
    points.iter().map(value).collect()
}

fn single(run: &History, curve: &Curve<'_>) -> Option<Figure> {
    let points = values(&run.steps, curve.key);
    plot(
        curve,
        vec![Series::new(curve.title, Color::Category(0), points)],
    )
}

fn layered(run: &History, curve: &Curve<'_>) -> Option<Figure> {
    let layers = run.steps.last()?.layers.len();
    let series = (0..layers).map(|layer| {
        let value = |point: &Point| {
            let values = point.layers.get(layer).map(|layer| &layer.values);
            let value = values.and_then(|values| values.get(curve.key));
            (point.step as f64, value.copied().unwrap_or(f64::NAN))
        };
        let points = run.steps.iter().map(value).collect();
        Series::new(format!("layer {layer}"), Color::of(layer, layers), points)
    });
    plot(curve, series.collect())
}

fn plot(curve: &Curve<'_>, series: Vec<Series>) -> Option<Figure> {
    let plot = LinePlot {
        title: curve.title.to_owned(),
        note: curve.note.to_owned(),
        x: "step".to_owned(),
        y: curve.y.to_owned(),
        series,
        // A balance that wavers by a thousandth shall not look like a storm; up to 5 the ticks of
        // a number of experts are whole.
        include: if curve.key == "dead_experts" {
            vec![0.0, 5.0]
        } else {
            vec![0.0]
        },
    };
    plot.figure()
}
