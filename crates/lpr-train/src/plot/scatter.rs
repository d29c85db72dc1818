//! Points in a plane.

use std::fmt::Write as _;

use super::lines::{frame, open};
use super::{Axis, WIDTH};
use crate::page::html::{Figure, Table, escape, number};

const HEIGHT: f64 = 340.0;
const LEFT: f64 = 44.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 26.0;
const BOTTOM: f64 = 38.0;
/// More labels than this would hide each other.
const MOST_LABELS: usize = 48;

/// A point.
#[derive(Clone, Debug, PartialEq)]
pub struct Dot {
    /// Its name.
    pub name: String,
    /// To the right.
    pub x: f64,
    /// Upwards.
    pub y: f64,
    /// Its area, 1 for an ordinary one; 0 draws a ring.
    pub size: f64,
}

/// Points in a plane.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ScatterPlot {
    /// What is shown.
    pub title: String,
    /// How to read it; may be empty.
    pub note: String,
    /// Name and unit of x, y and the size.
    pub axes: [String; 3],
    /// The points.
    pub dots: Vec<Dot>,
}

impl ScatterPlot {
    /// The figure; `None` without points.
    pub fn figure(&self) -> Option<Figure> {
        if self.dots.is_empty() {
            return None;
        }
        let [x_name, y_name, size_name] = &self.axes;
        let mut table = Table::new(&["", x_name, y_name, size_name]);
        for dot in &self.dots {
            let numbers = [dot.x, dot.y, dot.size].map(number);
            table
                .rows
                .push([vec![dot.name.clone()], numbers.to_vec()].concat());
        }
        Some(Figure {
            title: self.title.clone(),
            note: self.note.clone(),
            legend: String::new(),
            drawing: self.svg(),
            table,
            wide: false,
        })
    }

    fn svg(&self) -> String {
        let dots = self.dots.iter();
        let x = Axis::over(dots.clone().map(|dot| dot.x), true, LEFT, WIDTH - RIGHT);
        let y = Axis::over(dots.map(|dot| dot.y), true, HEIGHT - BOTTOM, TOP);
        let mut svg = open(&self.title, HEIGHT);
        svg.push_str(&frame(&x, &y, &self.axes[0], &self.axes[1], HEIGHT));
        svg.push_str("<g class=\"dots s0\">");
        for dot in &self.dots {
            let (at, height) = (x.place(dot.x), y.place(dot.y));
            let radius = (4.5 * dot.size.sqrt()).clamp(2.0, 13.0);
            let class = if dot.size == 0.0 {
                " class=\"ring\""
            } else {
                ""
            };
            let _ = write!(
                svg,
                "<circle{class} cx=\"{at}\" cy=\"{height}\" r=\"{radius:.1}\"><title>{}: {} {}</title>\
                 </circle>",
                escape(&dot.name),
                escape(&self.axes[2]),
                number(dot.size)
            );
        }
        svg.push_str("</g>");
        if self.dots.len() <= MOST_LABELS {
            svg.push_str("<g class=\"labels\">");
            for dot in &self.dots {
                let radius = (4.5 * dot.size.sqrt()).clamp(2.0, 13.0);
                let (at, height) = (x.place(dot.x) + radius + 2.0, y.place(dot.y) + 3.5);
                let _ = write!(
                    svg,
                    "<text x=\"{at:.1}\" y=\"{height:.1}\">{}</text>",
                    escape(&dot.name)
                );
            }
            svg.push_str("</g>");
        }
        svg.push_str("</svg>");
        svg
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_point_is_drawn_and_an_idle_one_is_a_ring() {
        let dot = |name: &str, x, size| Dot {
            name: name.to_owned(),
            x,
            y: -x,
            size,
        };
        let plot = ScatterPlot {
            title: "map".to_owned(),
            axes: ["a", "b", "load"].map(str::to_owned),
            dots: vec![dot("0", -1.0, 1.0), dot("1", 0.5, 0.0)],
            ..ScatterPlot::default()
        };
        let figure = plot.figure().expect("points");
        assert_eq!(figure.drawing.matches("<circle").count(), 2);
        assert_eq!(figure.drawing.matches("<circle class=\"ring\"").count(), 1);
        assert_eq!(figure.table.rows[1], ["1", "0.5000", "-0.5000", "0"]);
        assert!(ScatterPlot::default().figure().is_none());
    }
}
