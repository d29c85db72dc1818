//! `TensorBoard` event files: a framed sequence of `Event` messages of its protocol.
//!
//! A frame is the length (8 bytes, little endian), its checksum, the message, its checksum; a
//! checksum is the CRC-32C, rotated and shifted by a constant. Scalars have tags with slashes; the
//! load of a layer is one histogram whose bucket `i` holds the choices of expert `i`.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::files::WholeWrites;
use super::{Level, Reporter};
use crate::clock;
use crate::fault::Point;
use crate::process;
use crate::record::{BalanceRecord, EvalRecord, StepRecord, scalars};

/// Event files start with this, as `TensorBoard` demands.
pub const EVENTS_PREFIX: &str = "events.out.tfevents.";

/// An event file.
pub struct TensorBoard {
    run: PathBuf,
    out: WholeWrites,
}

impl TensorBoard {
    /// Starts a new event file in the folder of a run, after dropping from older ones everything
    /// after `last_step`; `None` drops them altogether.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn new(run: &Path, last_step: Option<u64>) -> io::Result<Self> {
        let old = event_files(run)?;
        for path in &old {
            match last_step {
                Some(step) => truncate(path, step)?,
                None => fs::remove_file(path)?,
            }
        }
        // Readers take the files in the order of their names.
        let newest = old.iter().filter_map(|path| time_of(path)).max();
        let now = clock::now() as u64;
        let time = newest.map_or(now, |newest| now.max(newest + 1));
        let host = process::host_name();
        let path = run.join(format!("{EVENTS_PREFIX}{time:010}.{host}"));
        let file = File::options().append(true).create_new(true).open(path)?;
        let mut events = Self {
            run: run.to_path_buf(),
            out: WholeWrites::new("the TensorBoard event file", Point::EventsWrite, file),
        };
        events.event(0, clock::now(), &Field::text(3, "brain.Event:2"));
        if let Some(step) = last_step {
            // A reader that saw later steps forgets them.
            let start = Field::varint(1, 1);
            events.event(step + 1, clock::now(), &Field::bytes(7, &start));
        }
        Ok(events)
    }

    fn event(&mut self, step: u64, wall_time: f64, content: &[u8]) {
        let event = [
            Field::double(1, wall_time),
            Field::varint(2, step),
            content.to_vec(),
        ];
        self.out.write(&framed(&event.concat()));
    }

    fn summary(&mut self, step: u64, wall_time: f64, scalars: Vec<(String, f64)>, loads: Vec<u8>) {
        let values = scalars.into_iter().map(|(tag, value)| {
            let value = [Field::text(1, &tag), Field::float(2, value as f32)];
            Field::bytes(1, &value.concat())
        });
        let summary = [values.collect::<Vec<_>>().concat(), loads].concat();
        self.event(step, wall_time, &Field::bytes(5, &summary));
    }
}

impl Reporter for TensorBoard {
    fn step(&mut self, record: &StepRecord) {
        let loads = loads("moe", &record.balance);
        self.summary(
            record.step,
            record.wall_time,
            scalars::of_step(record),
            loads,
        );
    }

    fn evaluation(&mut self, record: &EvalRecord) {
        let loads = loads("eval", &record.eval.balance);
        let scalars = scalars::of_evaluation(record);
        self.summary(record.step, record.wall_time, scalars, loads);
    }

    fn message(&mut self, _level: Level, _text: &str) {}

    fn rewind(&mut self, step: u64) {
        match Self::new(&self.run, Some(step)) {
            Ok(later) => *self = later,
            Err(error) => self.out.fail(format!(
                "cannot take the events after step {step} back: {error}"
            )),
        }
    }

    fn take_failure(&mut self) -> Option<String> {
        self.out.take_failure()
    }
}

/// A histogram per layer: bucket `i` reaches to `i + 1` and holds the choices of expert `i`.
fn loads(section: &str, balance: &BalanceRecord) -> Vec<u8> {
    let mut values = Vec::new();
    for layer in &balance.layers {
        let counts: Vec<f64> = layer.counts.iter().map(|&count| count as f64).collect();
        let weighted = |power: i32| -> f64 {
            let terms = counts.iter().enumerate();
            terms
                .map(|(expert, count)| (expert as f64).powi(power) * count)
                .sum()
        };
        let limits: Vec<f64> = (1..=counts.len()).map(|limit| limit as f64).collect();
        let histogram = [
            Field::double(1, 0.0),
            Field::double(2, counts.len() as f64),
            Field::double(3, weighted(0)),
            Field::double(4, weighted(1)),
            Field::double(5, weighted(2)),
            Field::doubles(6, &limits),
            Field::doubles(7, &counts),
        ];
        let tag = format!("{section}/layer_{:02}/load", layer.layer);
        let value = [Field::text(1, &tag), Field::bytes(5, &histogram.concat())];
        values.extend(Field::bytes(1, &value.concat()));
    }
    values
}

/// Fields of protocol buffer messages.
struct Field;

impl Field {
    fn key(number: u8, wire_type: u8) -> Vec<u8> {
        vec![number << 3 | wire_type]
    }

    fn varint(number: u8, value: u64) -> Vec<u8> {
        let mut bytes = Self::key(number, 0);
        push_varint(&mut bytes, value);
        bytes
    }

    fn double(number: u8, value: f64) -> Vec<u8> {
        [Self::key(number, 1), value.to_le_bytes().to_vec()].concat()
    }

    fn float(number: u8, value: f32) -> Vec<u8> {
        [Self::key(number, 5), value.to_le_bytes().to_vec()].concat()
    }

    fn bytes(number: u8, content: &[u8]) -> Vec<u8> {
        let mut bytes = Self::key(number, 2);
        push_varint(&mut bytes, content.len() as u64);
        bytes.extend(content);
        bytes
    }

    fn text(number: u8, text: &str) -> Vec<u8> {
        Self::bytes(number, text.as_bytes())
    }

    fn doubles(number: u8, values: &[f64]) -> Vec<u8> {
        let packed: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        Self::bytes(number, &packed)
    }
}

fn push_varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn framed(message: &[u8]) -> Vec<u8> {
    let length = (message.len() as u64).to_le_bytes();
    [
        &length[..],
        &masked_crc(&length).to_le_bytes(),
        message,
        &masked_crc(message).to_le_bytes(),
    ]
    .concat()
}

/// The checksum of a frame.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32 with Castagnoli's polynomial, bit by bit: event files grow by kilobytes.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = !0_u32;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            let carry = crc & 1;
            crc = crc >> 1 ^ (carry * 0x82f6_3b78);
        }
    }
    !crc
}

fn event_files(run: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(run)? {
        let path = entry?.path();
        if time_of(&path).is_some() {
            paths.push(path);
        }
    }
    Ok(paths)
}

/// The time in the name of an event file.
fn time_of(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?.strip_prefix(EVENTS_PREFIX)?;
    name.split('.').next()?.parse().ok()
}

/// Cuts an event file before the first event that is damaged or later than `last_step`.
fn truncate(path: &Path, last_step: u64) -> io::Result<()> {
    let bytes = fs::read(path)?;
    let mut kept = 0;
    while let Some(message) = message_at(&bytes[kept..]) {
        if step_of(message) > last_step {
            break;
        }
        kept += message.len() + FRAME_BYTES;
    }
    File::options().write(true).open(path)?.set_len(kept as u64)
}

/// Bytes of a frame around its message.
const FRAME_BYTES: usize = 16;

/// The message at the start of `bytes`, if all of it is there and undamaged.
fn message_at(bytes: &[u8]) -> Option<&[u8]> {
    let (length, rest) = bytes.split_at_checked(12)?;
    let size = usize::try_from(u64::from_le_bytes(length[..8].try_into().ok()?)).ok()?;
    let (message, crc) = rest.split_at_checked(size)?;
    let whole = crc.get(..4)? == masked_crc(message).to_le_bytes();
    whole.then_some(message)
}

/// The step of an event as [`TensorBoard::event`] writes it: after the key and the 8 bytes of the
/// time, and the key of the step.
fn step_of(message: &[u8]) -> u64 {
    let digits = message.iter().skip(10).enumerate();
    let mut step = 0;
    for (place, byte) in digits.take(10) {
        step |= u64::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            break;
        }
    }
    step
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_the_standard() {
        // RFC 3720, B.4.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        let ascending: Vec<u8> = (0..32).collect();
        assert_eq!(crc32c(&ascending), 0x46dd_794e);
    }

    #[test]
    fn steps_are_read_back_whatever_their_size() {
        for step in [0, 1, 127, 128, 300, 1 << 40] {
            let event = [Field::double(1, 1.5), Field::varint(2, step), vec![0x2a, 0]];
            assert_eq!(step_of(&event.concat()), step);
        }
    }

    /// The steps of all events of a file without damage.
    fn steps(path: &Path) -> Vec<u64> {
        let bytes = fs::read(path).expect("readable");
        let (mut rest, mut steps) = (&bytes[..], Vec::new());
        while let Some(message) = message_at(rest) {
            steps.push(step_of(message));
            rest = &rest[message.len() + FRAME_BYTES..];
        }
        assert_eq!(rest, b"");
        steps
    }

    #[test]
    fn going_back_takes_later_events_out_and_goes_on() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut events = TensorBoard::new(folder.path(), None).expect("created");
        let loss = || vec![("train/loss_ce".to_owned(), 0.5)];
        for step in [10, 20] {
            events.summary(step, 1.0, loss(), Vec::new());
        }
        events.rewind(15);
        events.summary(20, 2.0, loss(), Vec::new());
        let mut files = event_files(folder.path()).expect("listed");
        files.sort();
        let found: Vec<Vec<u64>> = files.iter().map(|path| steps(path)).collect();
        assert_eq!(found, [vec![0, 10], vec![0, 16, 20]]);
        assert_eq!(events.take_failure(), None);
    }

    #[test]
    fn a_resumed_run_keeps_whole_events_up_to_its_checkpoint_and_starts_a_later_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut first = TensorBoard::new(folder.path(), None).expect("created");
        for step in [10, 20, 30] {
            first.summary(
                step,
                1.0,
                vec![("train/loss_ce".to_owned(), 0.5)],
                Vec::new(),
            );
        }
        let old = event_files(folder.path()).expect("listed").remove(0);
        let whole = fs::read(&old).expect("readable");
        let event = (whole.len() - framed(&[0; 9]).len()) / 3;
        assert!(event > 0);
        // A crash in the middle of an event.
        fs::write(&old, [&whole[..], &whole[..7]].concat()).expect("written");
        drop(TensorBoard::new(folder.path(), Some(20)).expect("resumed"));
        let kept = fs::read(&old).expect("readable");
        assert!(whole.starts_with(&kept) && kept.len() < whole.len());
        assert_eq!(steps(&old), [0, 10, 20]);
        let mut names = event_files(folder.path()).expect("listed");
        names.sort();
        assert_eq!((names.len(), &names[0]), (2, &old));
    }
}
