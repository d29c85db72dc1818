//! Small valid files, from which fuzzing starts.

use std::path::Path;

use lpr_data::{Cursor, SourcePosition};
use parquet::basic::{Compression, Encoding, ZstdLevel};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::json;

use crate::support::{ParquetFile, json_lines, texts};

const CONFIGS: [(&str, &str); 3] = [
    (
        "deepseek",
        include_str!("../../configs/tiny-deepseekv3-lpr.toml"),
    ),
    ("mixtral", include_str!("../../configs/tiny-mixtral.toml")),
    ("quickstart", include_str!("../../configs/quickstart.toml")),
];

/// Ten documents and a null, with every kind of escape that a text may need.
pub fn lines() -> Vec<u8> {
    json_lines(&rows())
}

fn rows() -> Vec<Option<String>> {
    let mut rows: Vec<_> = (texts(0, 10).into_iter())
        .map(|text| text.map(|text| text.chars().take(60).collect::<String>()))
        .collect();
    rows.push(None);
    rows.push(Some("\"\\\n\t\u{1f600}".to_owned()));
    rows
}

/// Writes the same documents in row groups of five.
pub fn write_parquet(path: &Path) {
    write(path, ParquetFile::default());
}

fn write(path: &Path, file: ParquetFile<'_>) {
    let rows_per_group = 5;
    let file = ParquetFile {
        rows_per_group,
        ..file
    };
    file.write(path, &rows());
}

/// Target, name and content of every seed.
pub fn all() -> Vec<(&'static str, String, Vec<u8>)> {
    let mut all = Vec::new();
    for kind in 0..3 {
        all.push((
            "json_lines",
            format!("lines-{kind}"),
            tagged(kind, &lines()),
        ));
    }
    let folder = tempfile::tempdir().expect("a folder");
    let zstd = Compression::ZSTD(ZstdLevel::default());
    let files = [
        ("snappy", ParquetFile::default()),
        (
            "gzip",
            ParquetFile::default().compressed(Compression::GZIP(Default::default())),
        ),
        ("zstd", ParquetFile::default().compressed(zstd)),
        (
            "none",
            ParquetFile::default().compressed(Compression::UNCOMPRESSED),
        ),
        (
            "delta",
            ParquetFile::default().plain_encoded(Encoding::DELTA_BYTE_ARRAY),
        ),
        (
            "length",
            ParquetFile::default().plain_encoded(Encoding::DELTA_LENGTH_BYTE_ARRAY),
        ),
        (
            "plain",
            ParquetFile::default().plain_encoded(Encoding::PLAIN),
        ),
    ];
    for (name, file) in files {
        let path = folder.path().join(name);
        write(&path, file);
        all.push((
            "parquet",
            name.to_owned(),
            std::fs::read(path).expect("written"),
        ));
    }
    let start = json!(lpr_data::DataPosition::default());
    for options in 0..4 {
        for (shard, row) in [(0, 0), (0, 3), (1, 2), (2, 0)] {
            let mut position = start.clone();
            let source = SourcePosition {
                cursor: Cursor {
                    shard,
                    row,
                    ..Cursor::default()
                },
                ..SourcePosition::default()
            };
            position["sources"] = json!([source]);
            let name = format!("at-{options}-{shard}-{row}");
            all.push((
                "position",
                name,
                tagged(options, position.to_string().as_bytes()),
            ));
        }
    }
    all.extend(CONFIGS.map(|(name, text)| ("config", name.to_owned(), text.into())));
    all.push(("safetensors", "weights".to_owned(), tagged(0, &weights())));
    let index = json!({ "weight_map": { "a": "model-00001-of-00001.safetensors" } });
    all.push((
        "safetensors",
        "index".to_owned(),
        tagged(1, index.to_string().as_bytes()),
    ));
    all.push((
        "manifest",
        "manifest".to_owned(),
        tagged(0, manifest().as_bytes()),
    ));
    all.push((
        "manifest",
        "state".to_owned(),
        tagged(1, state(&start).as_bytes()),
    ));
    all
}

fn tagged(kind: u8, bytes: &[u8]) -> Vec<u8> {
    [&[kind], bytes].concat()
}

fn weights() -> Vec<u8> {
    let numbers = [0_u8; 24];
    let views = [
        ("a", Dtype::F32, vec![2, 3]),
        ("b", Dtype::BF16, vec![3, 4]),
    ]
    .map(|(name, dtype, shape)| (name, TensorView::new(dtype, shape, &numbers).expect("fits")));
    safetensors::serialize(views, None).expect("written")
}

/// Of a folder in which `state.json` holds `{}`.
fn manifest() -> String {
    let sha256 = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
    json!({
        "format_version": 1,
        "lpr_train_version": "0.1.0",
        "step": 3,
        "config_hash": "hash",
        "files": { "state.json": { "bytes": 2, "sha256": sha256 } }
    })
    .to_string()
}

fn state(position: &serde_json::Value) -> String {
    let counts = json!({ "with_padding": [1, 2], "without_padding": [1, 2] });
    json!({ "step": 3, "data": position, "data_fingerprint": "x", "window": [counts] }).to_string()
}
