//! Results of a grid as Markdown, CSV and LaTeX.

use std::fmt::Write as _;

use super::paper::Printed;
use crate::history::History;
use crate::page::html::number;

/// The 97.5 % quantile of Student's t with 1 to 9 degrees of freedom; beyond that the normal one is
/// near enough.
const STUDENT: [f64; 9] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262,
];
const NORMAL: f64 = 1.960;

/// A mean over seeds and half the width of its 95 % interval, which a single seed does not have.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mean {
    /// NaN of nothing.
    pub mean: f64,
    /// `t s / sqrt(n)`.
    pub half_width: Option<f64>,
}

impl Mean {
    /// Of the values of all seeds.
    pub fn of(values: &[f64]) -> Self {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let half_width = (values.len() > 1).then(|| {
            let t = STUDENT.get(values.len() - 2).copied().unwrap_or(NORMAL);
            t * (squares / (n - 1.0) / n).sqrt()
        });
        Self { mean, half_width }
    }

    fn text(&self) -> String {
        match self.half_width {
            Some(half_width) => format!("{} +- {}", number(self.mean), number(half_width)),
            None => number(self.mean),
        }
    }
}

/// A row of results.
#[derive(Clone, Debug, PartialEq)]
pub struct ResultRow {
    /// Its name.
    pub name: String,
    /// What the paper prints, if it is a row of the paper.
    pub printed: Option<Printed>,
    /// Our figures, in the order of the columns of the table.
    pub ours: Vec<Mean>,
    /// Seeds that were trained to the end.
    pub seeds: usize,
}

/// What is told of every row: its title, and where it is from: the last evaluation or the last logged
/// step.
const FIGURES: [(&str, Source); 10] = [
    ("loss, nats", Source::Evaluation("loss")),
    ("Gini", Source::Evaluation("gini")),
    ("min-max", Source::Evaluation("min_max_ratio")),
    ("dead experts", Source::Evaluation("dead_experts")),
    ("Gini, EMA", Source::Step("gini_ema")),
    ("min-max, EMA", Source::Step("min_max_ratio_ema")),
    ("tokens", Source::Step("tokens_seen")),
    ("steps", Source::Step("step")),
    ("parameters", Source::Parameters),
    ("minutes", Source::Minutes),
];

#[derive(Clone, Copy)]
enum Source {
    Evaluation(&'static str),
    Step(&'static str),
    Parameters,
    Minutes,
}

impl ResultRow {
    /// From the runs of all seeds and the number of parameters of their model.
    pub fn new(name: String, printed: Option<Printed>, runs: &[History], parameters: u64) -> Self {
        let value = |run: &History, source: Source| match source {
            Source::Evaluation(key) => run.evaluations.last().map_or(f64::NAN, |p| p.value(key)),
            Source::Step(key) => run.steps.last().map_or(f64::NAN, |p| p.value(key)),
            Source::Parameters => parameters as f64,
            Source::Minutes => minutes(run),
        };
        let mean = |(_, source): &(_, Source)| {
            let values: Vec<f64> = runs.iter().map(|run| value(run, *source)).collect();
            Mean::of(&values)
        };
        Self {
            name,
            printed,
            ours: FIGURES.iter().map(mean).collect(),
            seeds: runs.len(),
        }
    }

    fn cells(&self) -> Vec<String> {
        let mut cells = vec![self.name.clone()];
        let printed = self.printed.map(|p| [p.loss, p.gini, p.min_max_ratio]);
        for (place, mean) in self.ours.iter().enumerate() {
            cells.push(mean.text());
            if let Some(value) = printed.and_then(|printed| printed.get(place).copied()) {
                cells.push(number(value));
            }
        }
        cells.push(self.seeds.to_string());
        cells
    }
}

/// Training time: the mean time of a step, which the kept lines sample evenly, times the steps.
fn minutes(run: &History) -> f64 {
    let times: Vec<f64> = run.steps.iter().map(|p| p.value("step_time_ms")).collect();
    let mean = times.iter().sum::<f64>() / times.len() as f64;
    let steps = run.steps.last().map_or(f64::NAN, |point| point.step as f64);
    mean * steps / 60_000.0
}

fn head(rows: &[ResultRow]) -> Vec<String> {
    let has_printed = rows.iter().any(|row| row.printed.is_some());
    let mut head = vec!["run".to_owned()];
    for (place, (title, _)) in FIGURES.iter().enumerate() {
        head.push((*title).to_owned());
        if has_printed && place < 3 {
            head.push("paper".to_owned());
        }
    }
    head.push("seeds".to_owned());
    head
}

/// A Markdown table.
pub fn markdown(title: &str, note: &str, rows: &[ResultRow]) -> String {
    let head = head(rows);
    let mut text = format!("## {title}\n\n| {} |\n", head.join(" | "));
    let _ = writeln!(text, "|{}", "---|".repeat(head.len()));
    for row in rows {
        let cells: Vec<String> = row
            .cells()
            .iter()
            .map(|cell| cell.replace('|', "\\|"))
            .collect();
        let _ = writeln!(text, "| {} |", cells.join(" | "));
    }
    text.push_str(
        "\nLoss is cross-entropy alone. Gini, min-max ratio and dead experts: exact counts on the \
         validation tokens, no padding, mean over layers (dead experts: sum). EMA: the paper's \
         smoothed training counts, padding included.",
    );
    if rows.iter().any(|row| row.seeds > 1) {
        text.push_str(" +-: 95 % interval of the mean over seeds.");
    }
    if !note.is_empty() {
        let _ = write!(text, " {note}");
    }
    text.push('\n');
    text
}

/// Comma-separated values in full precision: the mean and half the interval of each figure.
pub fn csv(rows: &[ResultRow]) -> String {
    let mut text = "run,seeds,paper loss,paper Gini,paper min-max".to_owned();
    for (title, _) in FIGURES {
        let title = title.replace(',', "");
        let _ = write!(text, ",{title},{title} +-");
    }
    text.push('\n');
    for row in rows {
        let printed = row.printed.map(|p| [p.loss, p.gini, p.min_max_ratio]);
        let plain = |value: f64| {
            if value.is_finite() {
                value.to_string()
            } else {
                String::new()
            }
        };
        let _ = write!(text, "\"{}\",{}", row.name.replace('"', "\"\""), row.seeds);
        for value in printed.unwrap_or([f64::NAN; 3]) {
            let _ = write!(text, ",{}", plain(value));
        }
        for mean in &row.ours {
            let half_width = mean.half_width.map_or_else(String::new, plain);
            let _ = write!(text, ",{},{half_width}", plain(mean.mean));
        }
        text.push('\n');
    }
    text
}

/// A `tabular` of LaTeX.
pub fn latex(rows: &[ResultRow]) -> String {
    let head = head(rows);
    let columns = "r".repeat(head.len() - 1);
    let mut text = format!("\\begin{{tabular}}{{l{columns}}}\n\\hline\n");
    let _ = writeln!(text, "{} \\hline", latex_line(&head));
    for row in rows {
        let _ = writeln!(text, "{}", latex_row(row));
    }
    text.push_str("\\hline\n\\end{tabular}\n");
    text
}

/// The names of the columns of [`latex`].
pub fn latex_head(rows: &[ResultRow]) -> String {
    latex_line(&head(rows))
}

/// One row of [`latex`].
pub fn latex_row(row: &ResultRow) -> String {
    latex_line(&row.cells())
}

fn latex_line(cells: &[String]) -> String {
    format!("{} \\\\", escaped(cells).join(" & "))
}

fn escaped(cells: &[String]) -> Vec<String> {
    let escape = |cell: &String| {
        let mut text = String::new();
        for character in cell.chars() {
            match character {
                '\\' => text.push_str("\\textbackslash{}"),
                '&' | '%' | '$' | '#' | '_' | '{' | '}' => {
                    text.push('\\');
                    text.push(character);
                }
                '~' => text.push_str("\\textasciitilde{}"),
                '^' => text.push_str("\\textasciicircum{}"),
                other => text.push(other),
            }
        }
        text.replace("+-", "$\\pm$")
    };
    cells.iter().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Line;

    fn run(loss: f64) -> History {
        let mut run = History::default();
        let step = "{\"step\":120,\"loss_ce\":1,\"step_time_ms\":500,\"tokens_seen\":999,\"gini_ema\":0.5}";
        let eval = format!("{{\"step\":120,\"eval\":{{\"loss\":{loss},\"gini\":0.25}}}}");
        for text in [step, &eval] {
            match Line::parse(text).expect("a line") {
                Line::Step(point) => run.steps.push(point),
                Line::Evaluation(point) => run.evaluations.push(point),
                Line::Other => panic!("{text}"),
            }
        }
        run
    }

    #[test]
    fn the_interval_of_three_seeds_is_students() {
        let mean = Mean::of(&[1.0, 2.0, 3.0]);
        assert!((mean.mean - 2.0).abs() < 1e-12);
        let half_width = mean.half_width.expect("three seeds");
        assert!(
            (half_width - 4.303 / 3_f64.sqrt()).abs() < 1e-12,
            "{half_width}"
        );
        assert_eq!(Mean::of(&[5.0]).half_width, None);
        assert!(Mean::of(&[]).mean.is_nan());
    }

    #[test]
    fn our_values_stand_beside_those_of_the_paper() {
        let printed = Printed {
            loss: 3.5,
            gini: 0.75,
            min_max_ratio: f64::NAN,
        };
        let row = ResultRow::new("a|b_c".to_owned(), Some(printed), &[run(2.0), run(3.0)], 77);
        let text = markdown("T", "A note.", std::slice::from_ref(&row));
        let lines: Vec<&str> = text.lines().collect();
        assert!(
            lines[2].starts_with("| run | loss, nats | paper | Gini | paper | min-max | paper |")
        );
        assert!(
            lines[4].starts_with("| a\\|b_c | 2.500 +- 6.353 | 3.500 | 0.2500 +- 0 | 0.7500 |"),
            "{text}"
        );
        assert!(
            lines[4].ends_with("| 120 +- 0 | 77 +- 0 | 1 +- 0 | 2 |"),
            "{text}"
        );
        assert!(text.contains("95 % interval") && text.ends_with("A note.\n"));
        let csv = csv(std::slice::from_ref(&row));
        assert!(
            csv.lines()
                .nth(1)
                .is_some_and(|line| line.starts_with("\"a|b_c\",2,3.5,0.75,,2.5,"))
        );
        let widths: Vec<usize> = csv.lines().map(|line| line.split(',').count()).collect();
        assert_eq!(widths[0], widths[1]);
        let latex = latex(&[row]);
        assert!(
            latex.contains("a|b\\_c & 2.500 $\\pm$ 6.353 & 3.500"),
            "{latex}"
        );
    }

    #[test]
    fn a_grid_of_ones_own_has_no_column_of_the_paper() {
        let row = ResultRow::new("x".to_owned(), None, &[run(2.0)], 1);
        let text = markdown("T", "", std::slice::from_ref(&row));
        assert!(!text.contains("paper |"), "{text}");
        assert!(text.contains("| x | 2 | 0.2500 |"), "{text}");
    }
}
