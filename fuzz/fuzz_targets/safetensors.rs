//! A folder of weights that somebody else wrote: one file, or an index if the first byte is odd.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lpr_fuzz::{file, folder};
use lpr_train::hugging_face::folder::read_tensors;

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, bytes)) = bytes.split_first() else {
        return;
    };
    let (used, other) = match kind % 2 {
        0 => ("model.safetensors", "model.safetensors.index.json"),
        _ => ("model.safetensors.index.json", "model.safetensors"),
    };
    let _ = std::fs::remove_file(folder().join(other));
    file(used, bytes);
    let mut problems = Vec::new();
    let tensors = read_tensors(folder(), &mut problems);
    let product = |shape: &[usize]| shape.iter().product::<usize>();
    assert!(
        tensors
            .values()
            .all(|tensor| tensor.values.len() == product(&tensor.shape))
    );
});
