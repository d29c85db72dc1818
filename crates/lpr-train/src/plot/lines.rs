//! Lines over a common axis.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::{Axis, WIDTH};
use crate::page::html::{Figure, Table, escape, number};

const HEIGHT: f64 = 250.0;
const LEFT: f64 = 50.0;
const RIGHT: f64 = 10.0;
const TOP: f64 = 24.0;
const BOTTOM: f64 = 38.0;
/// Colours of a palette in which neighbours can be told apart.
const CATEGORIES: usize = 7;
/// Shades of a ramp by depth.
const DEPTHS: usize = 12;

/// The colour of a series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Color {
    /// One of a few things without order; beyond seven the lines are dashed.
    Category(usize),
    /// The index and the number of things in an order, for example layers.
    Depth(usize, usize),
    /// Something to compare with.
    Reference,
}

impl Color {
    /// That of thing `index` of `count`: a palette as long as it lasts, then a ramp.
    pub fn of(index: usize, count: usize) -> Self {
        if count <= CATEGORIES {
            Self::Category(index)
        } else {
            Self::Depth(index, count)
        }
    }

    /// The classes of the style sheet.
    pub fn class(self) -> String {
        match self {
            Self::Category(index) if index < CATEGORIES => format!("s{index}"),
            Self::Category(index) => {
                format!("s{} dash{}", index % CATEGORIES, index / CATEGORIES % 3)
            }
            Self::Depth(index, count) => {
                let shade = index * (DEPTHS - 1) / count.saturating_sub(1).max(1);
                format!("d{shade}")
            }
            Self::Reference => "reference".to_owned(),
        }
    }
}

/// A named line.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Its name in legend and table.
    pub name: String,
    /// Its colour.
    pub color: Color,
    /// Its points by x; what is not finite leaves a gap.
    pub points: Vec<(f64, f64)>,
    /// Mark the points themselves, and join them by a thin line only.
    pub dots: bool,
}

impl Series {
    /// A line.
    pub fn new(name: impl Into<String>, color: Color, points: Vec<(f64, f64)>) -> Self {
        Self {
            name: name.into(),
            color,
            points,
            dots: false,
        }
    }

    /// The same with its points marked.
    #[must_use]
    pub fn with_dots(self) -> Self {
        Self { dots: true, ..self }
    }
}

/// Lines over a common axis.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LinePlot {
    /// What is shown.
    pub title: String,
    /// How to read it; may be empty.
    pub note: String,
    /// What is to the right, with its unit.
    pub x: String,
    /// What is upwards, with its unit.
    pub y: String,
    /// The lines.
    pub series: Vec<Series>,
    /// Values that the vertical axis must reach.
    pub include: Vec<f64>,
}

impl LinePlot {
    /// The figure; `None` if there is no point to draw.
    pub fn figure(&self) -> Option<Figure> {
        let series = self.series.iter();
        let mut points = series.flat_map(|series| &series.points);
        if !points.any(|(_, y)| y.is_finite()) {
            return None;
        }
        Some(Figure {
            title: self.title.clone(),
            note: self.note.clone(),
            legend: legend(&self.series),
            drawing: self.svg(),
            table: self.table(),
            wide: false,
        })
    }

    fn svg(&self) -> String {
        let points = || self.series.iter().flat_map(|series| &series.points);
        let x = Axis::over(points().map(|p| p.0), false, LEFT, WIDTH - RIGHT);
        let ys = points().map(|p| p.1).chain(self.include.iter().copied());
        let y = Axis::over(ys, true, HEIGHT - BOTTOM, TOP);
        let mut svg = open(&self.title, HEIGHT);
        svg.push_str(&frame(&x, &y, &self.x, &self.y, HEIGHT));
        for series in &self.series {
            svg.push_str(&draw(series, &x, &y));
        }
        svg.push_str("</svg>");
        svg
    }

    fn table(&self) -> Table {
        let mut head = vec![self.x.clone()];
        head.extend(self.series.iter().map(|series| series.name.clone()));
        let mut rows: BTreeMap<u64, Vec<String>> = BTreeMap::new();
        for (column, series) in self.series.iter().enumerate() {
            for &(x, y) in &series.points {
                // The bits of numbers that are not negative are in the order of the numbers.
                let empty = || {
                    let mut row = vec![String::new(); head.len()];
                    row[0] = number(x);
                    row
                };
                rows.entry(x.to_bits()).or_insert_with(empty)[column + 1] = number(y);
            }
        }
        Table {
            head,
            rows: rows.into_values().collect(),
        }
    }
}

/// The start of a drawing.
pub fn open(title: &str, height: f64) -> String {
    format!(
        "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{}\">",
        escape(title)
    )
}

/// Grid, ticks and the names of both axes.
pub fn frame(x: &Axis, y: &Axis, x_name: &str, y_name: &str, height: f64) -> String {
    let mut svg = "<g class=\"axes\">".to_owned();
    let _ = write!(svg, "<text x=\"2\" y=\"12\">{}</text>", escape(y_name));
    for tick in y.ticks() {
        let (at, label) = (y.place(tick), y.label(tick));
        let (from, to) = (x.start, x.end);
        let _ = write!(
            svg,
            "<path class=\"grid\" d=\"M{from} {at}H{to}\"/><text class=\"end\" x=\"{}\" \
             y=\"{}\">{label}</text>",
            from - 6.0,
            at + 4.0
        );
    }
    let base = y.start;
    for tick in x.ticks() {
        let (at, label) = (x.place(tick), x.label(tick));
        let _ = write!(
            svg,
            "<path class=\"tick\" d=\"M{at} {base}v4\"/><text class=\"middle\" x=\"{at}\" \
             y=\"{}\">{label}</text>",
            base + 16.0
        );
    }
    let middle = f64::midpoint(x.start, x.end);
    let _ = write!(
        svg,
        "<text class=\"middle\" x=\"{middle}\" y=\"{}\">{}</text></g>",
        height - 5.0,
        escape(x_name)
    );
    svg
}

fn draw(series: &Series, x: &Axis, y: &Axis) -> String {
    let measured = if series.dots { " measured" } else { "" };
    let mut svg = format!(
        "<g class=\"series {}{measured}\"><title>{}</title>",
        series.color.class(),
        escape(&series.name)
    );
    for run in series.points.split(|(_, y)| !y.is_finite()) {
        if let [(at, value)] = run {
            let (at, value) = (x.place(*at), y.place(*value));
            let _ = write!(svg, "<circle cx=\"{at}\" cy=\"{value}\" r=\"3\"/>");
        } else if !run.is_empty() {
            let places = run.iter().map(|(at, value)| {
                let (at, value) = (x.place(*at), y.place(*value));
                format!("{at},{value}")
            });
            let places: Vec<String> = places.collect();
            let _ = write!(svg, "<polyline points=\"{}\"/>", places.join(" "));
            for place in places.iter().filter(|_| series.dots) {
                if let Some((at, value)) = place.split_once(',') {
                    let _ = write!(svg, "<circle cx=\"{at}\" cy=\"{value}\" r=\"2.5\"/>");
                }
            }
        }
    }
    svg.push_str("</g>");
    svg
}

/// Names and colours; only the first and the last of many shades in order.
fn legend(series: &[Series]) -> String {
    if series.len() < 2 {
        return String::new();
    }
    let shades = series
        .iter()
        .filter(|series| matches!(series.color, Color::Depth(..)));
    let (first, last) = (shades.clone().next(), shades.clone().next_back());
    let mut html = "<ul class=\"legend\">".to_owned();
    for one in series {
        let inner =
            matches!(one.color, Color::Depth(..)) && Some(one) != first && Some(one) != last;
        if inner {
            continue;
        }
        let dots = if Some(one) == first && first != last {
            " ..."
        } else {
            ""
        };
        let _ = write!(
            html,
            "<li class=\"{}\"><svg class=\"key\" viewBox=\"0 0 18 8\" aria-hidden=\"true\">\
             <path d=\"M0 4H18\"/></svg>{}{dots}</li>",
            one.color.class(),
            escape(&one.name)
        );
    }
    html.push_str("</ul>\n");
    html
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot(series: Vec<Series>) -> LinePlot {
        LinePlot {
            title: "a <b>".to_owned(),
            x: "step".to_owned(),
            y: "nats".to_owned(),
            series,
            ..LinePlot::default()
        }
    }

    #[test]
    fn a_gap_splits_the_line_and_a_lone_point_is_a_dot() {
        let points = vec![(0.0, 1.0), (1.0, 2.0), (2.0, f64::NAN), (3.0, 1.5)];
        let series = Series::new("loss", Color::Category(0), points);
        let figure = plot(vec![series]).figure().expect("points");
        assert_eq!(figure.drawing.matches("<polyline").count(), 1);
        assert_eq!(figure.drawing.matches("<circle").count(), 1);
        assert!(figure.drawing.contains("aria-label=\"a &lt;b&gt;\""));
        assert_eq!(figure.table.head, ["step", "loss"]);
        assert_eq!(figure.table.rows[2], ["2", "-"]);
    }

    #[test]
    fn nothing_to_draw_is_no_figure() {
        let series = Series::new("loss", Color::Category(0), vec![(1.0, f64::NAN)]);
        assert!(plot(vec![series]).figure().is_none());
        assert!(plot(Vec::new()).figure().is_none());
    }

    #[test]
    fn many_layers_get_a_ramp_of_which_the_legend_shows_the_ends() {
        let series: Vec<Series> = (0..24)
            .map(|layer| {
                let points = vec![(0.0, f64::from(layer)), (1.0, 1.0)];
                Series::new(
                    format!("layer {layer}"),
                    Color::of(layer as usize, 24),
                    points,
                )
            })
            .collect();
        let figure = plot(series).figure().expect("points");
        assert_eq!(figure.drawing.matches("class=\"series d").count(), 24);
        assert!(figure.drawing.contains("series d0\"") && figure.drawing.contains("series d11\""));
        assert_eq!(figure.legend.matches("<li").count(), 2);
        assert!(figure.legend.contains("layer 0 ...") && figure.legend.contains("layer 23<"));
    }
}
