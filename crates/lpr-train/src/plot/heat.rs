//! Heat maps: expert load over time, similarity of vectors.

use std::fmt::Write as _;

use super::WIDTH;
use super::lines::open;
use crate::page::html::{Figure, Table, number};

/// Colours of the load.
const SHADES: usize = 16;
/// Colours of the similarity, the middle one for 0.
const SIMILARITY_SHADES: usize = 11;
const LEFT: f64 = 40.0;
const RIGHT: f64 = 6.0;
const TOP: f64 = 8.0;
const BOTTOM: f64 = 34.0;

/// Counts per layer and expert after some step.
#[derive(Clone, Debug, PartialEq)]
pub struct Frame {
    /// Optimizer steps done.
    pub step: u64,
    /// Choices by layer and expert.
    pub counts: Vec<Vec<u64>>,
}

/// The load of every expert of every layer, with a slider over time.
#[derive(Clone, Debug, PartialEq)]
pub struct LoadMap {
    /// In the order of time, all of the same shape.
    pub frames: Vec<Frame>,
}

impl LoadMap {
    /// The figure; `None` without frames or experts.
    pub fn figure(&self) -> Option<Figure> {
        let last = self.frames.last()?;
        if last.counts.first()?.is_empty() {
            return None;
        }
        let most = self.scale();
        Some(Figure {
            title: "Load of every expert".to_owned(),
            note:
                "A row is a layer, a column an expert. 1 is the load that every expert has if all \
                   have the same; a blank cell is an expert without a token."
                    .to_owned(),
            legend: legend(most),
            drawing: self.drawing(last, most),
            table: table(last),
            wide: true,
        })
    }

    /// The relative load of the last shade: what all but a fiftieth of the cells stay below, 2 to 8.
    fn scale(&self) -> f64 {
        let cells = self.frames.iter().flat_map(|frame| &frame.counts);
        let mut loads: Vec<f64> = cells.flat_map(|counts| relative(counts)).collect();
        loads.sort_by(f64::total_cmp);
        let place = (loads.len() * 49 / 50).min(loads.len().saturating_sub(1));
        loads
            .get(place)
            .map_or(2.0, |load| load.ceil().clamp(2.0, 8.0))
    }

    fn drawing(&self, last: &Frame, most: f64) -> String {
        let (layers, experts) = (last.counts.len(), last.counts[0].len());
        let width = (WIDTH - LEFT - RIGHT) / experts as f64;
        let row = (220.0 / layers as f64).clamp(4.0, 26.0);
        let height = TOP + row * layers as f64 + BOTTOM;
        let mut svg = open("Load of every expert by layer", height);
        for (layer, counts) in last.counts.iter().enumerate() {
            let y = TOP + row * layer as f64;
            for (expert, shade) in shades(counts, most).chars().enumerate() {
                let x = LEFT + width * expert as f64;
                let _ = write!(
                    svg,
                    "<rect class=\"cell h{shade}\" x=\"{x:.2}\" y=\"{y:.2}\" width=\"{width:.2}\" \
                     height=\"{row:.2}\"/>"
                );
            }
        }
        svg.push_str(&names(layers, experts, row, width, height));
        svg.push_str("</svg>");
        let frames: Vec<String> = self
            .frames
            .iter()
            .map(|frame| {
                let rows = frame.counts.iter().map(|counts| shades(counts, most));
                format!("{}:{}", frame.step, rows.collect::<String>())
            })
            .collect();
        let newest = frames.len() - 1;
        format!(
            "<div class=\"over-time\" data-frames=\"{}\">{svg}<label>after step <output>{}</output>\
             <input type=\"range\" min=\"0\" max=\"{newest}\" value=\"{newest}\" \
             aria-label=\"step\"/></label></div>",
            frames.join(";"),
            last.step
        )
    }
}

/// Counts over their mean; zeros if nothing was counted.
fn relative(counts: &[u64]) -> Vec<f64> {
    let total: u64 = counts.iter().sum();
    let mean = total as f64 / counts.len().max(1) as f64;
    let load = |&count: &u64| if total == 0 { 0.0 } else { count as f64 / mean };
    counts.iter().map(load).collect()
}

/// One character a cell: `x` for none, else a shade as a letter.
fn shades(counts: &[u64], most: f64) -> String {
    let shade = |load: f64| {
        if load == 0.0 {
            return 'x';
        }
        let shade = (load / most * SHADES as f64) as usize;
        char::from(b'a' + shade.min(SHADES - 1) as u8)
    };
    relative(counts).into_iter().map(shade).collect()
}

/// Numbers of layers and experts, as many as fit.
fn names(layers: usize, experts: usize, row: f64, width: f64, height: f64) -> String {
    let mut svg = "<g class=\"axes\">".to_owned();
    let every = (14.0 / row).ceil() as usize;
    for layer in (0..layers).step_by(every) {
        let y = TOP + row * (layer as f64 + 0.5) + 4.0;
        let x = LEFT - 6.0;
        let _ = write!(
            svg,
            "<text class=\"end\" x=\"{x}\" y=\"{y:.1}\">{layer}</text>"
        );
    }
    let base = height - BOTTOM + 14.0;
    let every = round_up((26.0 / width).ceil() as usize);
    for expert in (0..experts).step_by(every) {
        let x = LEFT + width * (expert as f64 + 0.5);
        let _ = write!(
            svg,
            "<text class=\"middle\" x=\"{x:.1}\" y=\"{base:.1}\">{expert}</text>"
        );
    }
    let (middle, bottom) = (f64::midpoint(LEFT, WIDTH - RIGHT), height - 4.0);
    let side = TOP + row * layers as f64 / 2.0;
    let _ = write!(
        svg,
        "<text class=\"middle\" x=\"{middle}\" y=\"{bottom:.1}\">expert</text><text class=\"middle\" \
         transform=\"translate(11 {side:.1}) rotate(-90)\">layer</text></g>"
    );
    svg
}

/// 1, 2, 4, 8 and so on, at least `least`.
fn round_up(least: usize) -> usize {
    least.max(1).next_power_of_two()
}

fn legend(most: f64) -> String {
    let mut html = "<p class=\"ramp\">load <span>0</span><span class=\"shades\">".to_owned();
    for shade in 0..SHADES {
        let letter = char::from(b'a' + shade as u8);
        let _ = write!(html, "<i class=\"h{letter}\"></i>");
    }
    let most = number(most);
    let _ = writeln!(html, "</span><span>{most} times even or more</span></p>");
    html
}

fn table(frame: &Frame) -> Table {
    let experts = frame.counts[0].len();
    let mut head = vec![format!("choices after step {}", frame.step)];
    head.extend((0..experts).map(|expert| format!("expert {expert}")));
    let rows = frame.counts.iter().enumerate().map(|(layer, counts)| {
        let mut row = vec![format!("layer {layer}")];
        row.extend(counts.iter().map(|&count| number(count as f64)));
        row
    });
    Table {
        head,
        rows: rows.collect(),
    }
}

/// The cosine of every pair of `rows` as a map.
///
/// # Shapes
/// `cosines`: a square, row by row.
pub fn similarity_map(title: &str, cosines: &[Vec<f64>]) -> Figure {
    let n = cosines.len();
    let side = (WIDTH - LEFT - RIGHT) / n.max(1) as f64;
    let height = TOP + side * n as f64 + BOTTOM;
    let mut svg = open(title, height);
    let mut shapes = vec![String::new(); SIMILARITY_SHADES];
    for (row, cosines) in cosines.iter().enumerate() {
        let shades: Vec<usize> = cosines
            .iter()
            .map(|&cosine| similarity_shade(cosine))
            .collect();
        let mut column = 0;
        for run in shades.chunk_by(|a, b| a == b) {
            let (length, shade) = (run.len(), run[0]);
            let _ = write!(shapes[shade], "M{column} {row}h{length}v1h-{length}z");
            column += length;
        }
    }
    let _ = write!(
        svg,
        "<g shape-rendering=\"crispEdges\" transform=\"translate({LEFT} {TOP}) scale({side:.4})\">"
    );
    for (shade, shape) in shapes.iter().enumerate() {
        if !shape.is_empty() {
            let _ = write!(svg, "<path class=\"r{shade}\" d=\"{shape}\"/>");
        }
    }
    svg.push_str("</g>");
    let named = names(n, n, side, side, height).replace(">layer<", ">expert<");
    svg.push_str(&named);
    svg.push_str("</svg>");
    Figure {
        title: title.to_owned(),
        note: String::new(),
        legend: similarity_legend(),
        drawing: svg,
        table: neighbours(cosines),
        wide: false,
    }
}

fn similarity_shade(cosine: f64) -> usize {
    let part = f64::midpoint(cosine.clamp(-1.0, 1.0), 1.0);
    (part * (SIMILARITY_SHADES - 1) as f64).round() as usize
}

fn similarity_legend() -> String {
    let mut html = "<p class=\"ramp\">cosine <span>-1</span><span class=\"shades\">".to_owned();
    for shade in 0..SIMILARITY_SHADES {
        let _ = write!(html, "<i class=\"r{shade}\"></i>");
    }
    html.push_str("</span><span>1</span></p>\n");
    html
}

fn neighbours(cosines: &[Vec<f64>]) -> Table {
    let mut table = Table::new(&["expert", "most similar", "its cosine", "mean cosine"]);
    for (expert, row) in cosines.iter().enumerate() {
        let others = || {
            row.iter()
                .enumerate()
                .filter(move |(other, _)| *other != expert)
        };
        let Some((nearest, cosine)) = others().max_by(|a, b| a.1.total_cmp(b.1)) else {
            continue;
        };
        let mean = others().map(|(_, cosine)| cosine).sum::<f64>() / (row.len() - 1) as f64;
        table.rows.push(vec![
            expert.to_string(),
            nearest.to_string(),
            number(*cosine),
            number(mean),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cell_of_every_frame_has_a_shade_and_idle_experts_have_their_own() {
        let frame = |step, counts: [[u64; 4]; 2]| Frame {
            step,
            counts: counts.map(Vec::from).to_vec(),
        };
        let map = LoadMap {
            frames: vec![
                frame(10, [[4, 0, 0, 0], [1, 1, 1, 1]]),
                frame(20, [[1, 1, 2, 0], [0, 0, 0, 0]]),
            ],
        };
        let figure = map.figure().expect("cells");
        assert_eq!(figure.drawing.matches("<rect class=\"cell").count(), 8);
        // The scale ends at 4 times even, the load of the expert that took everything.
        assert!(
            figure
                .drawing
                .contains("data-frames=\"10:pxxxeeee;20:eeixxxxx\""),
            "{}",
            figure.drawing
        );
        assert_eq!(figure.table.rows[0], ["layer 0", "1", "1", "2", "0"]);
        assert!(LoadMap { frames: Vec::new() }.figure().is_none());
    }

    #[test]
    fn a_similarity_map_covers_the_square() {
        let cosines = vec![
            vec![1.0, 0.0, -1.0],
            vec![0.0, 1.0, 0.5],
            vec![-1.0, 0.5, 1.0],
        ];
        let figure = similarity_map("x", &cosines);
        for (shade, shape) in [(0, "M2 0h1"), (5, "M1 0h1"), (10, "M0 0h1"), (8, "M2 1h1")] {
            let path = format!("<path class=\"r{shade}\" d=\"{shape}");
            assert!(
                figure.drawing.contains(&path),
                "{path} in {}",
                figure.drawing
            );
        }
        assert_eq!(figure.table.rows[0], ["0", "1", "0", "-0.5000"]);
    }
}
