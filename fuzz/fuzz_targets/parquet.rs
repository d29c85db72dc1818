//! Parquet files.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lpr_fuzz::{file, read_documents};

fuzz_target!(|bytes: &[u8]| read_documents(&file("x.parquet", bytes)));
