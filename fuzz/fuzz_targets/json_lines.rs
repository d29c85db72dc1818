//! JSON lines, plain and compressed. The first byte says how.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lpr_fuzz::{file, gzip, read_documents};

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, bytes)) = bytes.split_first() else {
        return;
    };
    // Valid compression around anything keeps the checksums from keeping the fuzzer out.
    let content = match kind % 3 {
        0 => bytes.to_vec(),
        1 => gzip(bytes),
        _ => zstd::encode_all(bytes, 1).expect("compressed"),
    };
    read_documents(&file("x.jsonl", &content));
});
