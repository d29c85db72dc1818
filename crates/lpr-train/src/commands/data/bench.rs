//! `lpr-train data bench`

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Instant;

use lpr_data::{DataConfig, DataLoader, DataPosition, Hub, Packing, Split, Tokenizer, check_files};
use serde::Serialize;

use crate::cli::DataBenchArgs;
use crate::commands::print_findings;
use crate::error::{Outcome, TrainError};
use crate::process;

/// Rows of a batch, as many as `train.micro_batch_size` has by default.
const ROWS_PER_BATCH: usize = 8;

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Findings {
    threads: usize,
    packing: Packing,
    sequence_length: usize,
    documents: u64,
    /// UTF-8 bytes of all documents.
    bytes: u64,
    rows: u64,
    /// In rows, without padding.
    tokens: u64,
    /// Share of the positions of all batches.
    padding_share: f64,
    /// Share of the tokens of all documents.
    cut_share: f64,
    seconds: f64,
    /// Of the whole process; absent where the system does not tell, as all CPU figures.
    cpu_s: Option<f64>,
    /// Tokens per second of the one pass. Called so because `scripts/data-bench.sh` hands the
    /// object to a runner of repeated measurements.
    tok_s_median: f64,
    tok_per_cpu_s: Option<f64>,
    mb_per_s: f64,
    /// Before the tokenizer was opened.
    rss_before_mb: Option<f64>,
    rss_peak_mb: Option<f64>,
}

/// Runs the command.
///
/// # Errors
/// Sources or a tokenizer that cannot be read.
pub fn run(args: &DataBenchArgs, hub: &Hub) -> Result<Outcome, TrainError> {
    let findings = measure(args, hub)?;
    print_findings(args.json, &findings, || table(&findings))?;
    Ok(Outcome::Done)
}

fn measure(args: &DataBenchArgs, hub: &Hub) -> Result<Findings, TrainError> {
    let rss_before_mb = peak_mb();
    let tokenizer = Tokenizer::fetch(&args.tokenizer, hub)?;
    let config = DataConfig {
        text_column: args.text_column.clone(),
        sequence_length: args.sequence_length,
        packing: args.packing,
        hub: hub.clone(),
        ..DataConfig::new(args.data.clone())
    };
    let threads = args.threads.unwrap_or_else(DataLoader::default_workers);
    let (start, cpu_start) = (Instant::now(), process::cpu_time());
    let mut loader = DataLoader::open_with_workers(
        &config,
        Split::Train,
        ROWS_PER_BATCH,
        Arc::new(tokenizer),
        &DataPosition::default(),
        threads,
    )?;
    let mut rows = 0;
    while let Some(batch) = loader.next_batch()? {
        rows += batch.num_rows as u64;
    }
    let seconds = start.elapsed().as_secs_f64();
    let cpu = process::cpu_time().zip(cpu_start);
    let cpu_s = cpu.map(|(end, start)| end.saturating_sub(start).as_secs_f64());
    let rss_peak_mb = peak_mb();
    let position = loader.position();
    // The loader does not count bytes; a second pass, not timed, does.
    let reports = check_files(&args.data, &args.text_column, None, hub)?;
    let bytes = reports.iter().map(|report| report.bytes).sum();
    let tokens = position.tokens as f64;
    let share = |part: u64| part as f64 / (part as f64 + tokens).max(1.0);
    Ok(Findings {
        threads,
        packing: args.packing,
        sequence_length: args.sequence_length,
        documents: position.documents,
        bytes,
        rows,
        tokens: position.tokens,
        padding_share: share(position.padding_tokens),
        cut_share: share(position.cut_tokens),
        seconds,
        cpu_s,
        tok_s_median: tokens / seconds,
        tok_per_cpu_s: cpu_s.map(|cpu_s| tokens / cpu_s),
        mb_per_s: bytes as f64 / 1e6 / seconds,
        rss_before_mb,
        rss_peak_mb,
    })
}

fn peak_mb() -> Option<f64> {
    process::peak_memory().map(|bytes| bytes as f64 / f64::from(1 << 20))
}

fn table(found: &Findings) -> String {
    let mut text = format!(
        "{} documents, {:.1} MB of text, {} tokens in {} rows of up to {}; padding {:.2} %, cut \
         {:.2} %\n{:.0} tokens/s, {:.1} MB/s with {} threads in {:.2} s",
        found.documents,
        found.bytes as f64 / 1e6,
        found.tokens,
        found.rows,
        found.sequence_length,
        found.padding_share * 1e2,
        found.cut_share * 1e2,
        found.tok_s_median,
        found.mb_per_s,
        found.threads,
        found.seconds,
    );
    if let Some(rate) = found.tok_per_cpu_s {
        let _ = write!(text, "; {rate:.0} tokens per CPU second");
    }
    if let Some(peak) = found.rss_peak_mb {
        let _ = write!(text, "; peak memory {peak:.0} MiB");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_document_of_the_sources_is_counted() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let lines = "{\"text\": \"one\"}\n{\"text\": \"three\"}\n";
        std::fs::write(folder.path().join("a.jsonl"), lines).expect("written");
        let args = DataBenchArgs {
            data: vec![folder.path().display().to_string()],
            tokenizer: "bytes".to_owned(),
            text_column: "text".to_owned(),
            threads: Some(2),
            packing: Packing::None,
            sequence_length: 4,
            json: false,
        };
        let found = measure(&args, &Hub::default()).expect("readable");
        assert_eq!((found.documents, found.bytes, found.rows), (2, 8, 2));
        assert_eq!((found.tokens, found.threads), (7, 2));
        assert!((found.padding_share - 1.0 / 8.0).abs() < 1e-12);
        assert!((found.cut_share - 1.0 / 8.0).abs() < 1e-12);
        assert!(found.tok_s_median > 0.0);
        let text = table(&found);
        assert!(text.starts_with("2 documents, 0.0 MB of text, 7 tokens in 2 rows of up to 4"));
    }
}
