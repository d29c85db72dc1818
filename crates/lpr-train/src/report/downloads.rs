//! Transfers from the hub on the terminal.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressStyle};
use lpr_data::HubEvent;

use super::{Bars, Level, Verbosity, print_line};

/// Shows the events of a hub.
pub struct Downloads {
    verbosity: Verbosity,
    bars: Option<MultiProgress>,
    /// By the name of the file.
    running: Mutex<HashMap<String, ProgressBar>>,
}

impl Downloads {
    /// Progress goes to `bars`, where there are any; the rest are lines on stderr.
    pub fn new(verbosity: Verbosity, bars: &Bars) -> Self {
        let hidden = std::env::var("HF_HUB_DISABLE_PROGRESS_BARS");
        let hidden = hidden.is_ok_and(|value| !matches!(value.as_str(), "" | "0"));
        Self {
            verbosity,
            bars: bars.0.clone().filter(|_| !hidden),
            running: Mutex::default(),
        }
    }

    /// Takes one in.
    pub fn show(&self, event: &HubEvent) {
        let (HubEvent::Fetched { name, .. } | HubEvent::Failed { name }) = event else {
            if let HubEvent::Progress { name, done, total } = event {
                self.move_bar(name, *done, *total);
            }
            return self.say(event);
        };
        let bar = self
            .running
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(name);
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
        self.say(event);
    }

    fn move_bar(&self, name: &str, done: u64, total: u64) {
        let Some(bars) = &self.bars else { return };
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let bar = running.entry(name.to_owned()).or_insert_with(|| {
            let bar = bars.add(ProgressBar::new(total));
            let style = "[{bar:16}] {bytes}/{total_bytes} {bytes_per_sec} eta {eta} {wide_msg}";
            let style = ProgressStyle::with_template(style);
            let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
            bar.set_style(style.progress_chars("=> "));
            bar.set_message(name.rsplit('/').next().unwrap_or(name).to_owned());
            // What was there before does not count as fast.
            bar.set_position(done);
            bar.reset_eta();
            bar
        });
        bar.set_position(done);
    }

    fn say(&self, event: &HubEvent) {
        let Some((level, text)) = sentence(event) else {
            return;
        };
        if !self.verbosity.shows(level) {
            return;
        }
        match &self.bars {
            Some(bars) => bars.suspend(|| print_line(&text)),
            None => print_line(&text),
        }
    }
}

fn sentence(event: &HubEvent) -> Option<(Level, String)> {
    Some(match event {
        HubEvent::Fetched { name, bytes, time } => {
            let seconds = time.as_secs_f64();
            let rate = HumanBytes((*bytes as f64 / seconds.max(1e-3)) as u64);
            let bytes = HumanBytes(*bytes);
            let text = format!("fetched {name}: {bytes} in {seconds:.1} s, {rate}/s");
            (Level::Info, text)
        }
        HubEvent::Dropped { name } => {
            let text = format!("dropped {name} from the cache, as data.cache_limit_gb asks");
            (Level::Debug, text)
        }
        HubEvent::Retry {
            address,
            reason,
            delay,
        } => {
            let seconds = delay.as_secs_f64();
            let text = format!("warning: {address}: {reason}; trying again in {seconds:.1} s");
            (Level::Warning, text)
        }
        HubEvent::OfflineGlob { address, files } => {
            let text = format!(
                "warning: HF_HUB_OFFLINE: {address} stands for the {files} of its files that are \
                 in the cache"
            );
            (Level::Warning, text)
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_finished_transfer_has_its_rate_and_a_retry_its_reason() {
        let text = |event| sentence(&event).map_or_else(String::new, |(_, text)| text);
        let fetched = text(HubEvent::Fetched {
            name: "hf://a/b/c".to_owned(),
            bytes: 3 << 20,
            time: Duration::from_secs(2),
        });
        assert_eq!(fetched, "fetched hf://a/b/c: 3.00 MiB in 2.0 s, 1.50 MiB/s");
        let retry = text(HubEvent::Retry {
            address: "hf://a/b/c".to_owned(),
            reason: "status 500".to_owned(),
            delay: Duration::from_millis(1500),
        });
        assert_eq!(
            retry,
            "warning: hf://a/b/c: status 500; trying again in 1.5 s"
        );
    }
}
