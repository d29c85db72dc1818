//! Axes with round numbers.

/// Ticks that are wished for; a few more or less make round numbers possible.
const WISHED_TICKS: f64 = 5.0;

/// From values to places in a drawing.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    /// The value at `start`.
    pub low: f64,
    /// The value at `end`.
    pub high: f64,
    /// Where the axis starts in the drawing.
    pub start: f64,
    /// Where it ends.
    pub end: f64,
    step: f64,
}

impl Axis {
    /// An axis over all finite `values`, widened to round numbers if `round`.
    pub fn over(values: impl Iterator<Item = f64>, round: bool, start: f64, end: f64) -> Self {
        let finite = values.filter(|value| value.is_finite());
        let (low, high) = finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
            (low.min(value), high.max(value))
        });
        let (mut low, mut high) = match (low <= high, low < high) {
            (false, _) => (0.0, 1.0),
            // A flat line runs through the middle.
            (_, false) => (
                low - low.abs().max(1e-9) / 2.0,
                high + high.abs().max(1e-9) / 2.0,
            ),
            _ => (low, high),
        };
        let step = round_step((high - low) / WISHED_TICKS);
        if round {
            low = (low / step + 1e-9).floor() * step;
            high = (high / step - 1e-9).ceil() * step;
        }
        Self {
            low,
            high,
            start,
            end,
            step,
        }
    }

    /// The place of a value, rounded to a tenth of a unit.
    pub fn place(&self, value: f64) -> f64 {
        let part = (value - self.low) / (self.high - self.low);
        ((self.start + part * (self.end - self.start)) * 10.0).round() / 10.0
    }

    /// Round values on the axis.
    pub fn ticks(&self) -> Vec<f64> {
        let first = (self.low / self.step - 1e-6).ceil() as i64;
        let last = (self.high / self.step + 1e-6).floor() as i64;
        (first..=last).map(|n| n as f64 * self.step).collect()
    }

    /// A tick as text, with the digits that the distance of ticks asks for.
    pub fn label(&self, tick: f64) -> String {
        compact(tick, self.step, self.low.abs().max(self.high.abs()))
    }
}

/// 1, 2 or 5 times a power of ten, at least `wished`.
fn round_step(wished: f64) -> f64 {
    let power = 10_f64.powf(wished.log10().floor());
    let factor = [1.0, 2.0, 5.0]
        .into_iter()
        .find(|factor| factor * power >= wished * (1.0 - 1e-9));
    factor.unwrap_or(10.0) * power
}

/// `value` with the digits that tell values apart that differ by `step`, in the unit that fits the
/// `largest` of them: thousands as `k`, millions as `M` and so on, powers of ten below a thousandth.
fn compact(value: f64, step: f64, largest: f64) -> String {
    let (unit, suffix) = match largest {
        _ if largest >= 1e12 => (1e12, "T"),
        _ if largest >= 1e9 => (1e9, "G"),
        _ if largest >= 1e6 => (1e6, "M"),
        _ if largest >= 1e4 => (1e3, "k"),
        _ => (1.0, ""),
    };
    if value == 0.0 {
        return "0".to_owned();
    }
    if largest < 1e-2 {
        let power = (largest.log10() + 1e-9).floor();
        let digits = (power - step.log10() - 1e-9).ceil().max(0.0) as usize;
        return format!("{:.digits$}e{power}", value / 10_f64.powf(power));
    }
    let digits = (-(step / unit).log10() - 1e-9).ceil().max(0.0) as usize;
    format!("{:.digits$}{suffix}", value / unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(values: &[f64]) -> Vec<String> {
        let axis = Axis::over(values.iter().copied(), true, 0.0, 100.0);
        axis.ticks().iter().map(|&tick| axis.label(tick)).collect()
    }

    #[test]
    fn ticks_are_round_and_cover_the_values() {
        assert_eq!(
            labels(&[0.13, 0.97]),
            ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"].map(|text| if text == "0.0" {
                "0"
            } else {
                text
            })
        );
        assert_eq!(
            labels(&[0.0, 240.0]),
            ["0", "50", "100", "150", "200", "250"]
        );
        assert_eq!(
            labels(&[1e6, 3e6]),
            ["1.0M", "1.5M", "2.0M", "2.5M", "3.0M"]
        );
        assert_eq!(labels(&[f64::NAN, 2.0, 2.0]).len(), 5);
        assert_eq!(labels(&[]).first().map(String::as_str), Some("0"));
    }

    #[test]
    fn a_tiny_scale_is_told_in_powers_of_ten() {
        assert_eq!(labels(&[0.0, 4e-5]), ["0", "1e-5", "2e-5", "3e-5", "4e-5"]);
        assert_eq!(labels(&[0.0, 0.001])[3..], ["0.6e-3", "0.8e-3", "1.0e-3"]);
    }

    #[test]
    fn places_run_from_start_to_end() {
        let axis = Axis::over([0.0, 10.0].into_iter(), true, 200.0, 0.0);
        let places = [0.0, 5.0, 10.0].map(|value| axis.place(value).to_bits());
        assert_eq!(places, [200.0_f64, 100.0, 0.0].map(f64::to_bits));
    }
}
