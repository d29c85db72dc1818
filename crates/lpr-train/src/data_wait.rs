//! Tells when training waits for its data.

use std::time::Duration;

/// The share of the time that may pass in waiting before it is worth a word.
const TOLERATED_SHARE: f64 = 0.05;

/// Watches the time that the windows between log lines spend waiting for data.
#[derive(Debug, Default)]
pub struct DataWait {
    windows: u64,
    has_warned: bool,
}

impl DataWait {
    /// Takes in a window of `total` seconds. A warning if too much of it was waiting; once a run, and
    /// not for the first window, in which files are opened and the first rows tokenized.
    pub fn after_window(&mut self, waited: Duration, total: Duration) -> Option<String> {
        self.windows += 1;
        let share = waited.as_secs_f64() / total.as_secs_f64().max(f64::MIN_POSITIVE);
        if self.windows == 1 || self.has_warned || share <= TOLERATED_SHARE {
            return None;
        }
        self.has_warned = true;
        Some(format!(
            "{:.0} % of the time since the last log line went by waiting for data \
             (data_wait_ms of metrics.jsonl); `lpr-train data bench` tells how fast these sources \
             are read, and `lpr-train data prepare` tokenizes them once for all runs",
            share * 1e2
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_is_worth_one_word_after_the_first_window() {
        let window = |wait: &mut DataWait, waited: u64| {
            wait.after_window(Duration::from_millis(waited), Duration::from_secs(1))
        };
        let mut wait = DataWait::default();
        assert_eq!(window(&mut wait, 900), None);
        assert_eq!(window(&mut wait, 50), None);
        let warning = window(&mut wait, 250).expect("a quarter is too much");
        assert!(warning.starts_with("25 % of the time"), "{warning}");
        assert!(warning.contains("data prepare"), "{warning}");
        assert_eq!(window(&mut wait, 250), None);
    }
}
