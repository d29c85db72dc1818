//! A position from a checkpoint that somebody wrote: opening and reading on gives batches or errors.
#![no_main]

use std::sync::{Arc, OnceLock};

use libfuzzer_sys::fuzz_target;
use lpr_data::{DataConfig, DataLoader, DataPosition, OnDataEnd, Packing, Split, Tokenizer};
use lpr_fuzz::folder;

fn data() -> &'static (DataConfig, Arc<Tokenizer>) {
    static DATA: OnceLock<(DataConfig, Arc<Tokenizer>)> = OnceLock::new();
    DATA.get_or_init(|| {
        let data = folder().join("data");
        std::fs::create_dir(&data).expect("created");
        lpr_fuzz::seeds::write_parquet(&data.join("a.parquet"));
        std::fs::write(data.join("b.jsonl"), lpr_fuzz::seeds::lines()).expect("written");
        let config = DataConfig {
            sequence_length: 16,
            ..DataConfig::new(vec![data.display().to_string()])
        };
        (
            config,
            Arc::new(Tokenizer::open("bytes").expect("built in")),
        )
    })
}

fuzz_target!(|bytes: &[u8]| {
    let Some((options, json)) = bytes.split_first() else {
        return;
    };
    let Ok(start) = serde_json::from_slice::<DataPosition>(json) else {
        return;
    };
    let (config, tokenizer) = data();
    let mut config = config.clone();
    if options & 1 == 1 {
        config.packing = Packing::Packed;
    }
    if options & 2 == 2 {
        config.on_data_end = OnDataEnd::Repeat;
    }
    let tokenizer = tokenizer.clone();
    let loader = DataLoader::open_with_workers(&config, Split::Train, 2, tokenizer, &start, 1);
    if let Ok(mut loader) = loader {
        for _ in 0..3 {
            if !matches!(loader.next_batch(), Ok(Some(_))) {
                break;
            }
        }
    }
});
