//! Writes small data files for the tests.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use lpr_data::synthetic::document;
use lpr_data::{DataConfig, Split};
use parquet::basic::{Compression, Encoding};
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::properties::{WriterProperties, WriterPropertiesBuilder};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

/// Texts of the synthetic corpus, with some characters beyond ASCII.
pub fn texts(first: u64, count: u64) -> Vec<Option<String>> {
    let text = |index| document(Split::Train, index).text;
    (first..first + count)
        .map(|index| Some(format!("{} \u{201c}caf\u{e9}\u{201d}", text(index))))
        .collect()
}

/// How to write a parquet file; the text column comes second, after an integer column.
pub struct ParquetFile<'a> {
    /// Type of the text column, for example `OPTIONAL BYTE_ARRAY text (UTF8)`, or a struct around
    /// it.
    pub schema: &'a str,
    pub rows_per_group: usize,
    pub properties: WriterPropertiesBuilder,
}

impl Default for ParquetFile<'_> {
    fn default() -> Self {
        Self {
            schema: "OPTIONAL BYTE_ARRAY text (UTF8);",
            rows_per_group: 20,
            properties: WriterProperties::builder().set_compression(Compression::SNAPPY),
        }
    }
}

impl ParquetFile<'_> {
    pub fn write(self, path: &Path, rows: &[Option<String>]) {
        let rows: Vec<_> = rows
            .iter()
            .map(|row| row.as_ref().map(|text| text.as_bytes().to_vec()))
            .collect();
        self.write_bytes(path, &rows);
    }

    /// Writes rows that need not be UTF-8.
    pub fn write_bytes(self, path: &Path, rows: &[Option<Vec<u8>>]) {
        self.write_columns(path, std::slice::from_ref(&rows.to_vec()));
    }

    /// Writes the columns of the schema, all of the same length.
    pub fn write_columns(self, path: &Path, columns: &[Vec<Option<Vec<u8>>>]) {
        let schema = format!(
            "message schema {{ REQUIRED INT64 token_count; {} }}",
            self.schema
        );
        let schema = Arc::new(parse_message_type(&schema).unwrap());
        let properties = Arc::new(self.properties.build());
        let file = File::create(path).unwrap();
        let mut writer = SerializedFileWriter::new(file, schema, properties).unwrap();
        let num_rows = columns[0].len();
        for first in (0..num_rows).step_by(self.rows_per_group) {
            let end = num_rows.min(first + self.rows_per_group);
            let mut group = writer.next_row_group().unwrap();
            let mut column = group.next_column().unwrap().unwrap();
            let counts: Vec<i64> = (0..(end - first) as i64).collect();
            let typed = column.typed::<Int64Type>();
            typed.write_batch(&counts, None, None).unwrap();
            column.close().unwrap();
            for rows in columns {
                let rows = &rows[first..end];
                let mut column = group.next_column().unwrap().unwrap();
                let typed = column.typed::<ByteArrayType>();
                let max_level = typed.get_descriptor().max_def_level();
                let level = |row: &Option<Vec<u8>>| if row.is_some() { max_level } else { 0 };
                let levels: Vec<i16> = rows.iter().map(level).collect();
                let values: Vec<ByteArray> =
                    rows.iter().flatten().cloned().map(Into::into).collect();
                let levels = (max_level > 0).then_some(levels.as_slice());
                typed.write_batch(&values, levels, None).unwrap();
                column.close().unwrap();
            }
            group.close().unwrap();
        }
        writer.close().unwrap();
    }

    pub fn compressed(mut self, compression: Compression) -> Self {
        self.properties = self.properties.set_compression(compression);
        self
    }

    pub fn plain_encoded(mut self, encoding: Encoding) -> Self {
        self.properties = self
            .properties
            .set_dictionary_enabled(false)
            .set_column_encoding("text".into(), encoding);
        self
    }
}

/// One JSON object a line.
pub fn json_lines(rows: &[Option<String>]) -> Vec<u8> {
    let mut lines = Vec::new();
    for (index, row) in rows.iter().enumerate() {
        let object = serde_json::json!({"url": "x", "text": row, "timestamp": index});
        writeln!(lines, "{object}").unwrap();
    }
    lines
}

/// One member of a gzip stream.
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Flips bytes in the middle of a column chunk.
pub fn damage_row_group(path: &Path, row_group: usize) {
    use parquet::file::reader::{FileReader, SerializedFileReader};

    let reader = SerializedFileReader::new(File::open(path).unwrap()).unwrap();
    let (start, len) = reader
        .metadata()
        .row_group(row_group)
        .column(1)
        .byte_range();
    let middle = usize::try_from(start + len / 2).unwrap();
    let mut bytes = std::fs::read(path).unwrap();
    for byte in &mut bytes[middle..middle + 400] {
        *byte ^= 0xff;
    }
    std::fs::write(path, bytes).unwrap();
}

/// A config that reads everything in a folder with the byte tokenizer.
pub fn config(folder: &Path) -> DataConfig {
    DataConfig::new(vec![folder.to_str().unwrap().to_owned()])
}
