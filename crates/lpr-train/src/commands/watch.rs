//! `lpr-train watch`: the records of a run as they are written, until it ends.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cli::WatchArgs;
use crate::error::{Outcome, TrainError};
use crate::history::{Line, Point};
use crate::report::{print_result, spark};
use crate::run_dir::{METRICS_FILE, is_in_use};

/// Between two looks at the file.
const PAUSE: Duration = Duration::from_millis(250);

/// Runs the command: the newest records first, then each new one.
///
/// # Errors
/// A folder that is not one of a run, metrics that cannot be read.
pub fn run(args: &WatchArgs) -> Result<Outcome, TrainError> {
    let path = args.run.join(METRICS_FILE);
    let in_use = || is_in_use(&args.run).map_err(|error| TrainError::io(&args.run, error));
    let Some(mut running) = in_use()? else {
        let text = format!("{} is not the folder of a run", args.run.display());
        return Err(TrainError::Usage(text));
    };
    let mut tail = Tail::new(&path);
    let mut is_first = true;
    loop {
        let lines = tail.read().map_err(|error| TrainError::io(&path, error))?;
        let mut texts: Vec<String> = lines.iter().filter_map(|line| describe(line)).collect();
        if is_first {
            texts.drain(..texts.len().saturating_sub(1));
        }
        is_first = false;
        for text in texts {
            print_result(&text).map_err(TrainError::Output)?;
        }
        // What was written before the run ended was read after that.
        if !running {
            return Ok(Outcome::Done);
        }
        std::thread::sleep(PAUSE);
        running = in_use()?.unwrap_or(false);
    }
}

/// A file that grows, or is replaced by a shorter one with the same beginning.
struct Tail {
    path: PathBuf,
    offset: u64,
    /// The start of a line whose end is not there yet.
    rest: Vec<u8>,
}

impl Tail {
    fn new(path: &Path) -> Self {
        Self {
            path: path.to_path_buf(),
            offset: 0,
            rest: Vec::new(),
        }
    }

    /// The whole lines that came since the last call; none if there is no file yet.
    fn read(&mut self) -> io::Result<Vec<String>> {
        let mut file = match File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            file => file?,
        };
        let length = file.metadata()?.len();
        if length < self.offset {
            // A resumed run takes back what it logged after its checkpoint.
            self.offset = length;
            self.rest.clear();
        }
        file.seek(SeekFrom::Start(self.offset))?;
        self.offset += file.read_to_end(&mut self.rest)? as u64;
        let Some(end) = self.rest.iter().rposition(|&byte| byte == b'\n') else {
            return Ok(Vec::new());
        };
        let rest = self.rest.split_off(end + 1);
        let whole = std::mem::replace(&mut self.rest, rest);
        let whole = String::from_utf8_lossy(&whole).into_owned();
        Ok(whole.lines().map(str::to_owned).collect())
    }
}

/// A record in words, with a bar per expert.
fn describe(line: &str) -> Option<String> {
    let (head, point) = match Line::parse(line)? {
        Line::Step(point) => (
            format!(
                "step {} loss {:.4} tok/s {:.0}",
                point.step,
                point.value("loss_ce"),
                point.value("tok_s")
            ),
            point,
        ),
        Line::Evaluation(point) => (
            format!(
                "evaluation at step {}: loss {:.4} perplexity {:.2}",
                point.step,
                point.value("loss"),
                point.value("perplexity")
            ),
            point,
        ),
        Line::Other => return None,
    };
    let lines = [vec![head + &balance(&point)], layers(&point)].concat();
    Some(lines.join("\n"))
}

fn balance(point: &Point) -> String {
    format!(
        " gini {:.3} min-max {:.3} dead {}",
        point.value("gini"),
        point.value("min_max_ratio"),
        point.value("dead_experts")
    )
}

fn layers(point: &Point) -> Vec<String> {
    let value = |values: &std::collections::BTreeMap<String, f64>, key: &str| {
        values.get(key).copied().unwrap_or(f64::NAN)
    };
    let layers = point.layers.iter().map(|layer| {
        let gini = value(&layer.values, "gini");
        let min_max = value(&layer.values, "min_max_ratio");
        (&layer.counts[..], gini, min_max)
    });
    spark::layers(layers)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn only_whole_lines_are_handed_out_also_after_the_file_shrank() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("m");
        let mut tail = Tail::new(&path);
        assert_eq!(tail.read().expect("nothing yet"), Vec::<String>::new());
        let mut after = |content: &str| {
            fs::write(&path, content).expect("written");
            tail.read().expect("readable")
        };
        assert_eq!(after("1\n2\n3"), ["1", "2"]);
        assert_eq!(after("1\n2\n34\n"), ["34"]);
        assert_eq!(after("1\n"), Vec::<String>::new());
        assert_eq!(after("1\n2b\n"), ["2b"]);
    }
}
