//! Parquet files to documents: the text column only, a few rows at a time.
//!
//! Reads through the column interface of the `parquet` crate, so no other column is decompressed
//! and at most one data page (and the dictionary page) of the text column is in memory, whatever
//! the size of the file.

use std::panic::{AssertUnwindSafe, catch_unwind};

use parquet::basic::{ConvertedType, LogicalType, Type as PhysicalType};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::errors::ParquetError;
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::reader::{ChunkReader, FileReader, Length, SerializedFileReader};
use parquet::schema::types::SchemaDescriptor;

use crate::error::{Place, Problem};
use crate::hub::RemoteBytes;
use crate::input::{Input, reason};
use crate::parquet_footer::impossible_list;
use crate::random::permutation;
use crate::record::{Content, Failure, Record, describe_bytes};

/// Rows decoded at a time; each holds a reference into its page, not a copy.
const ROWS_PER_READ: usize = 64;

/// Reads one parquet file from a given row on.
pub(crate) struct ParquetReader {
    file: SerializedFileReader<Input>,
    /// The same file, if it is on the network.
    remote: Option<RemoteBytes>,
    column: usize,
    /// The row groups in the order in which they are read.
    order: Vec<usize>,
    /// Index in `order`.
    row_group: usize,
    /// Row that `next` yields, inside the row group.
    row: u64,
    /// None before the row group is opened.
    page_reader: Option<ColumnReaderImpl<ByteArrayType>>,
    texts: std::vec::IntoIter<Option<ByteArray>>,
}

impl ParquetReader {
    /// Opens a file and checks its footer and schema; reading starts at `row` of `row_group` in
    /// the order of the file, or in the one that `shuffle_key` gives. Pages before the row are not
    /// decoded.
    pub(crate) fn open(
        input: Input,
        text_column: &str,
        shuffle_key: Option<u64>,
        row_group: usize,
        row: u64,
    ) -> Result<Self, Failure> {
        let (len, remote) = (input.len(), input.remote());
        let file =
            open_file(input).map_err(|problem| (Place::File, reason(remote.as_ref(), problem)))?;
        let column = find_text_column(file.metadata().file_metadata().schema_descr(), text_column)
            .map_err(|problem| (Place::File, problem))?;
        for (index, metadata) in file.metadata().row_groups().iter().enumerate() {
            check_row_group(metadata, column, len)
                .map_err(|problem| (Place::RowGroup(index), problem))?;
        }
        let num_row_groups = file.num_row_groups();
        let order = match shuffle_key {
            Some(key) => permutation(num_row_groups, key),
            None => (0..num_row_groups).collect(),
        };
        Ok(Self {
            file,
            remote,
            column,
            order,
            row_group,
            row,
            page_reader: None,
            texts: Vec::new().into_iter(),
        })
    }

    /// Number of rows according to the footer.
    pub(crate) fn num_rows(&self) -> u64 {
        let rows = self.file.metadata().file_metadata().num_rows();
        u64::try_from(rows).unwrap_or(0)
    }

    /// The next row, `None` at the end of the file.
    pub(crate) fn next(&mut self) -> Result<Option<Record>, Failure> {
        loop {
            if let Some(text) = self.texts.next() {
                let record = Record {
                    row_group: self.row_group,
                    row: self.row,
                    byte: 0,
                    next_byte: 0,
                    content: self.content(text.as_ref()),
                };
                self.row += 1;
                return Ok(Some(record));
            }
            if self.row_group >= self.order.len() {
                return Ok(None);
            }
            if !self.fill()? {
                self.row_group += 1;
                self.row = 0;
                self.page_reader = None;
            }
        }
    }

    fn content(&self, text: Option<&ByteArray>) -> Content {
        let bytes = text.map(ByteArray::data).unwrap_or_default();
        if bytes.is_empty() {
            return Content::NoText;
        }
        if let Ok(text) = std::str::from_utf8(bytes) {
            return Content::Text(text.to_owned());
        }
        let (row_group, row) = (self.order[self.row_group], self.row);
        Content::Bad(Place::Row { row_group, row }, Problem::NotUtf8)
    }

    /// Decodes the next few rows; false at the end of the row group.
    fn fill(&mut self) -> Result<bool, Failure> {
        let place = Place::RowGroup(self.order[self.row_group]);
        // Decoders check their input, but a damaged page may still break an assumption inside one.
        let texts = catch_unwind(AssertUnwindSafe(|| self.read_rows()))
            .map_err(|_| (place, Problem::Decode("the decoder panicked".to_owned())))?
            .map_err(|error| {
                let problem = Problem::Decode(error.to_string());
                (place, reason(self.remote.as_ref(), problem))
            })?;
        self.texts = texts.into_iter();
        Ok(self.texts.len() > 0)
    }

    fn read_rows(&mut self) -> Result<Vec<Option<ByteArray>>, ParquetError> {
        let row_group = self.order[self.row_group];
        let num_rows = self.file.metadata().row_group(row_group).num_rows();
        let num_rows = u64::try_from(num_rows).unwrap_or(0);
        let remaining = num_rows.saturating_sub(self.row);
        if remaining == 0 {
            return Ok(Vec::new());
        }
        if self.page_reader.is_none() {
            self.page_reader = Some(self.open_row_group()?);
        }
        let reader = self.page_reader.as_mut().expect("opened above");
        let wanted = ROWS_PER_READ.min(usize::try_from(remaining).unwrap_or(ROWS_PER_READ));
        let (mut values, mut levels) = (Vec::new(), Vec::new());
        let (rows, _, _) = reader.read_records(wanted, Some(&mut levels), None, &mut values)?;
        if rows == 0 {
            return Err(ParquetError::EOF(format!(
                "the row group ends after {} of {num_rows} rows",
                self.row
            )));
        }
        // A required column has no definition levels; an optional top-level one has 1 where there
        // is a value.
        if levels.is_empty() {
            return Ok(values.into_iter().map(Some).collect());
        }
        let mut values = values.into_iter();
        let value_or_null = |level| if level > 0 { values.next() } else { None };
        Ok(levels.into_iter().map(value_or_null).collect())
    }

    fn open_row_group(&self) -> Result<ColumnReaderImpl<ByteArrayType>, ParquetError> {
        let row_group = self.file.get_row_group(self.order[self.row_group])?;
        if let Some(remote) = &self.remote {
            let (start, len) = row_group.metadata().column(self.column).byte_range();
            remote.set_useful_end(start + len);
        }
        let ColumnReader::ByteArrayColumnReader(mut reader) =
            row_group.get_column_reader(self.column)?
        else {
            return Err(ParquetError::General("not a byte array column".to_owned()));
        };
        reader.skip_records(usize::try_from(self.row)?)?;
        Ok(reader)
    }
}

fn open_file(input: Input) -> Result<SerializedFileReader<Input>, Problem> {
    if let Some(remote) = input.remote() {
        remote.read_tail()?;
    }
    check_magic(&input)?;
    let io = |error: ParquetError| Problem::Io(error.to_string());
    if let Some(found) = impossible_list(&input).map_err(io)? {
        return Err(Problem::Footer(found));
    }
    catch_unwind(AssertUnwindSafe(|| SerializedFileReader::new(input)))
        .map_err(|_| Problem::Footer("the decoder panicked".to_owned()))?
        .map_err(|error| Problem::Footer(error.to_string()))
}

/// A parquet file starts and ends with `PAR1`; says what is there instead.
fn check_magic(input: &Input) -> Result<(), Problem> {
    const MAGIC: &[u8] = b"PAR1";
    let part = |start, len| {
        let bytes = input.get_bytes(start, len);
        bytes.map_err(|error| reason(input.remote().as_ref(), Problem::Io(error.to_string())))
    };
    let len = input.len();
    let end = part(len.saturating_sub(4), len.min(4) as usize)?;
    // One request less; a file on the network that ends like parquet is parquet.
    if input.remote().is_some() && end == MAGIC {
        return Ok(());
    }
    let start = part(0, len.min(64) as usize)?;
    let found = if !start.starts_with(MAGIC) {
        describe_bytes(&start)
    } else if end != MAGIC {
        "it starts like one but was cut off".to_owned()
    } else {
        return Ok(());
    };
    let expected = "parquet";
    Err(Problem::WrongFormat { expected, found })
}

/// The footer must place the column's pages inside the file; the decoder relies on it.
fn check_row_group(
    row_group: &RowGroupMetaData,
    column: usize,
    file_len: u64,
) -> Result<(), Problem> {
    let chunk = row_group.column(column);
    let start = chunk
        .dictionary_page_offset()
        .unwrap_or_else(|| chunk.data_page_offset());
    let end = u64::try_from(start)
        .ok()
        .zip(u64::try_from(chunk.compressed_size()).ok())
        .and_then(|(start, len)| start.checked_add(len));
    if row_group.num_rows() < 0 || end.is_none_or(|end| end > file_len) {
        return Err(Problem::Footer(format!(
            "{} rows at offset {start}, {} bytes, in a file of {file_len} bytes",
            row_group.num_rows(),
            chunk.compressed_size()
        )));
    }
    Ok(())
}

fn find_text_column(schema: &SchemaDescriptor, text_column: &str) -> Result<usize, Problem> {
    let fields = schema.root_schema().get_fields();
    let Some(field) = fields.iter().find(|field| field.name() == text_column) else {
        return Err(Problem::MissingColumn {
            column: text_column.to_owned(),
            found: fields.iter().map(|field| field.name().to_owned()).collect(),
        });
    };
    let not_text = |found: String| Problem::NotText {
        column: text_column.to_owned(),
        found,
    };
    if field.is_group() {
        return Err(not_text("a nested group".to_owned()));
    }
    let column = (0..schema.num_columns())
        .find(|&index| schema.column(index).path().parts() == [text_column])
        .ok_or_else(|| not_text("a nested group".to_owned()))?;
    let descriptor = schema.column(column);
    let is_text = matches!(
        (descriptor.logical_type_ref(), descriptor.converted_type()),
        (Some(LogicalType::String | LogicalType::Enum), _)
            | (
                None,
                ConvertedType::NONE | ConvertedType::UTF8 | ConvertedType::ENUM
            )
    );
    if descriptor.max_rep_level() > 0 {
        return Err(not_text("repeated".to_owned()));
    }
    if descriptor.physical_type() != PhysicalType::BYTE_ARRAY || !is_text {
        let physical = descriptor.physical_type();
        return Err(not_text(match descriptor.logical_type_ref() {
            Some(logical) => format!("{physical} ({logical:?})"),
            None => physical.to_string(),
        }));
    }
    Ok(column)
}
