//! Pieces of HTML: escaped text, numbers, tables, figures with a table twin.
//!
//! What is written here is well-formed XML, too, so that a test can read it back.

use std::fmt::Write as _;

/// `text` as it may stand between tags and in quoted attributes; characters that XML does not know
/// become replacement characters.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\n' | '\t' => escaped.push(character),
            '\u{fffe}' | '\u{ffff}' => escaped.push('\u{fffd}'),
            control if control.is_control() => escaped.push('\u{fffd}'),
            other => escaped.push(other),
        }
    }
    escaped
}

/// A number with four significant digits; a dash for what is none.
pub fn number(value: f64) -> String {
    if !value.is_finite() {
        return "-".to_owned();
    }
    let size = value.abs();
    if value.fract() == 0.0 && size < 1e15 {
        return grouped(value as i64);
    }
    if size < 1e-4 {
        return format!("{value:.3e}");
    }
    let digits = (3 - size.log10().floor() as i32).max(0) as usize;
    if size >= 1e4 {
        grouped(value.round() as i64)
    } else {
        format!("{value:.digits$}")
    }
}

/// A whole number with a comma between thousands.
fn grouped(value: i64) -> String {
    let digits = value.unsigned_abs().to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if value < 0 { format!("-{text}") } else { text }
}

/// A table of texts; the first column names the row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    /// Names of the columns.
    pub head: Vec<String>,
    /// The rows, each as long as the head.
    pub rows: Vec<Vec<String>>,
}

impl Table {
    /// A table without rows.
    pub fn new(head: &[&str]) -> Self {
        Self {
            head: head.iter().map(|&name| name.to_owned()).collect(),
            rows: Vec::new(),
        }
    }

    /// The element, with an invisible `caption`.
    pub fn html(&self, caption: &str) -> String {
        let mut html = format!(
            "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{0}\"><table>\
             <caption>{0}</caption><thead><tr>",
            escape(caption)
        );
        for name in &self.head {
            let _ = write!(html, "<th scope=\"col\">{}</th>", escape(name));
        }
        html.push_str("</tr></thead><tbody>\n");
        for row in &self.rows {
            html.push_str("<tr>");
            for (column, text) in row.iter().enumerate() {
                let text = escape(text);
                if column == 0 {
                    let _ = write!(html, "<th scope=\"row\">{text}</th>");
                } else {
                    let _ = write!(html, "<td>{text}</td>");
                }
            }
            html.push_str("</tr>\n");
        }
        html.push_str("</tbody></table></div>");
        html
    }
}

/// A drawing with everything that belongs to it.
#[derive(Clone, Debug, Default)]
pub struct Figure {
    /// What is shown.
    pub title: String,
    /// How to read it, a sentence or two; may be empty.
    pub note: String,
    /// The legend, as HTML; may be empty.
    pub legend: String,
    /// The drawing, as SVG or other HTML.
    pub drawing: String,
    /// The same numbers as text.
    pub table: Table,
    /// Takes the width of two on wide screens.
    pub wide: bool,
}

impl Figure {
    /// The element.
    pub fn html(&self) -> String {
        let title = escape(&self.title);
        let note = if self.note.is_empty() {
            String::new()
        } else {
            format!("<p class=\"note\">{}</p>", escape(&self.note))
        };
        let class = if self.wide { "plot wide" } else { "plot" };
        format!(
            "<figure class=\"{class}\"><figcaption><h3>{title}</h3>{note}</figcaption>\n{}{}\n\
             <details><summary>Numbers</summary>{}</details></figure>\n",
            self.legend,
            self.drawing,
            self.table.html(&self.title)
        )
    }
}

/// Blocks of which one at a time is shown, to be chosen by its name; all of them on paper that a
/// browser without scripts prints.
pub fn tabs(label: &str, panels: &[(String, String)]) -> String {
    let label = escape(label);
    let mut html = format!("<div class=\"tabs\" data-tabs=\"{label}\">\n");
    for (name, content) in panels {
        let name = escape(name);
        let _ = writeln!(
            html,
            "<div class=\"panel\" data-name=\"{name}\"><h3 class=\"panel-name\">{name}</h3>\
             {content}</div>"
        );
    }
    html.push_str("</div>\n");
    html
}

/// A list of names and texts.
pub fn facts(entries: &[(String, String)]) -> String {
    let mut html = "<dl class=\"facts\">\n".to_owned();
    for (name, text) in entries {
        let _ = writeln!(
            html,
            "<div><dt>{}</dt><dd>{}</dd></div>",
            escape(name),
            escape(text)
        );
    }
    html.push_str("</dl>\n");
    html
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_become_markup() {
        assert_eq!(
            escape("<script>\"&\u{0}\u{7f}\n"),
            "&lt;script&gt;&quot;&amp;\u{fffd}\u{fffd}\n"
        );
    }

    #[test]
    fn numbers_have_four_digits_and_no_more() {
        let cases = [
            (0.0, "0"),
            (-3.0, "-3"),
            (1_234_567.0, "1,234,567"),
            (-1000.0, "-1,000"),
            (0.123_456, "0.1235"),
            (0.001_234_56, "0.001235"),
            (0.000_012_345, "1.234e-5"),
            (12.3456, "12.35"),
            (1234.56, "1235"),
            (12_345.6, "12,346"),
            (f64::NAN, "-"),
        ];
        for (value, want) in cases {
            assert_eq!(number(value), want, "{value}");
        }
    }
}
