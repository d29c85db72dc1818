//! Plots as SVG text: lines, heat maps, scattered points. Colours are classes that the page's style
//! sheet fills in, once for light and once for dark screens.
//!
//! A drawing is 400 units wide, about the width of a phone, so that its text stays legible there.

mod axis;
mod heat;
mod lines;
mod scatter;

pub use axis::Axis;
pub use heat::{Frame, LoadMap, similarity_map};
pub use lines::{Color, LinePlot, Series};
pub use scatter::{Dot, ScatterPlot};

/// Width of every drawing.
const WIDTH: f64 = 400.0;
