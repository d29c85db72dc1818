//! The load of a layer as a line of bars.

/// Bars of a line at most; more experts share one, which shows their mean.
const MOST_BARS: usize = 64;
const BARS: [char; 8] = [
    '\u{2581}', '\u{2582}', '\u{2583}', '\u{2584}', '\u{2585}', '\u{2586}', '\u{2587}', '\u{2588}',
];

/// A bar per expert, of full height from twice the even load on; a point for no token at all.
pub fn bars(counts: &[u64]) -> String {
    let total: u64 = counts.iter().sum();
    let even = total as f64 / counts.len().max(1) as f64;
    let bar = |counts: &[u64]| {
        let sum: u64 = counts.iter().sum();
        if sum == 0 {
            return '.';
        }
        let load = sum as f64 / counts.len() as f64 / even;
        BARS[((load * 4.0) as usize).min(BARS.len() - 1)]
    };
    let shared = counts.len().div_ceil(MOST_BARS).max(1);
    counts.chunks(shared).map(bar).collect()
}

/// A line per layer.
pub fn layers<'a>(layers: impl Iterator<Item = (&'a [u64], f64, f64)>) -> Vec<String> {
    let line = |(layer, (counts, gini, min_max)): (usize, (&[u64], f64, f64))| {
        let dead = counts.iter().filter(|&&count| count == 0).count();
        format!(
            "  layer {layer:<3} {} gini {gini:.3} min-max {min_max:.3} dead {dead}",
            bars(counts)
        )
    };
    layers.enumerate().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn even_loads_stand_in_the_middle_and_idle_experts_are_points() {
        assert_eq!(bars(&[5, 5, 5]), "\u{2585}\u{2585}\u{2585}");
        assert_eq!(bars(&[0, 1, 30, 9]), ".\u{2581}\u{2588}\u{2584}");
        assert_eq!(bars(&[0, 0]), "..");
        assert_eq!(bars(&[1; 512]).chars().count(), 64);
        assert_eq!(bars(&[1; 65]).chars().count(), 33);
    }

    #[test]
    fn a_layer_has_its_figures_beside_the_bars() {
        let lines = layers([(&[0_u64, 4][..], 0.5, 0.0)].into_iter());
        assert_eq!(
            lines,
            ["  layer 0   .\u{2588} gini 0.500 min-max 0.000 dead 1"]
        );
    }
}
