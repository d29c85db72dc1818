//! A look at a parquet footer before the `parquet` crate decodes it.
//!
//! The footer is in the compact encoding of Thrift, whose lists begin with their length. The crate
//! (60.1) passes over lists of booleans that it does not know without taking a byte for each, so
//! that a damaged length keeps it busy for minutes. No list has more elements than bytes follow.

use parquet::errors::ParquetError;
use parquet::file::reader::ChunkReader;

/// Structures inside structures; the crate gives up at the same depth.
const MAX_DEPTH: usize = 64;

/// The lists of the footer of a file that ends with `PAR1`; `Some` says which length is wrong.
/// Whatever else is wrong is left to the decoder.
pub(crate) fn impossible_list(file: &impl ChunkReader) -> Result<Option<String>, ParquetError> {
    let Some(end) = file.len().checked_sub(8) else {
        return Ok(None);
    };
    let len = file.get_bytes(end, 4)?;
    let len = len.first_chunk().map_or(0, |len| u32::from_le_bytes(*len));
    let Some(start) = end.checked_sub(len.into()) else {
        return Ok(None);
    };
    let footer = file.get_bytes(start, len as usize)?;
    let mut rest: &[u8] = &footer;
    Ok(match skip_struct(&mut rest, MAX_DEPTH) {
        Err(Stop::List { len }) => Some(format!(
            "a list of {len} elements in the last {} bytes",
            rest.len()
        )),
        Ok(()) | Err(Stop::Malformed) => None,
    })
}

/// Why the walk ended early.
enum Stop {
    List {
        len: u64,
    },
    /// For the decoder to tell.
    Malformed,
}

fn skip_struct(rest: &mut &[u8], depth: usize) -> Result<(), Stop> {
    let depth = depth.checked_sub(1).ok_or(Stop::Malformed)?;
    loop {
        let field = byte(rest)?;
        let (id_step, kind) = (field >> 4, field & 0xf);
        if kind == 0 {
            return Ok(());
        }
        if id_step == 0 {
            integer(rest)?;
        }
        // The value of a boolean field is in its type.
        if !matches!(kind, 1 | 2) {
            skip(rest, kind, depth)?;
        }
    }
}

/// Passes over a value of a Thrift type.
fn skip(rest: &mut &[u8], kind: u8, depth: usize) -> Result<(), Stop> {
    match kind {
        1..=3 => skip_bytes(rest, 1),
        4..=6 => integer(rest).map(drop),
        7 => skip_bytes(rest, 8),
        8 => {
            let len = integer(rest)?;
            skip_bytes(rest, len)
        }
        9 | 10 => {
            let head = byte(rest)?;
            let len = match u64::from(head >> 4) {
                15 => integer(rest)?,
                len => len,
            };
            skip_elements(rest, len, &[head & 0xf], depth)
        }
        11 => match integer(rest)? {
            0 => Ok(()),
            len => {
                let kinds = byte(rest)?;
                skip_elements(rest, len, &[kinds >> 4, kinds & 0xf], depth)
            }
        },
        12 => skip_struct(rest, depth),
        13 => skip_bytes(rest, 16),
        _ => Err(Stop::Malformed),
    }
}

fn skip_elements(rest: &mut &[u8], len: u64, kinds: &[u8], depth: usize) -> Result<(), Stop> {
    let depth = depth.checked_sub(1).ok_or(Stop::Malformed)?;
    if len > rest.len() as u64 {
        return Err(Stop::List { len });
    }
    for _ in 0..len {
        for &kind in kinds {
            skip(rest, kind, depth)?;
        }
    }
    Ok(())
}

fn byte(rest: &mut &[u8]) -> Result<u8, Stop> {
    let (&first, after) = rest.split_first().ok_or(Stop::Malformed)?;
    *rest = after;
    Ok(first)
}

fn skip_bytes(rest: &mut &[u8], len: u64) -> Result<(), Stop> {
    let len = usize::try_from(len).map_err(|_| Stop::Malformed)?;
    *rest = rest.get(len..).ok_or(Stop::Malformed)?;
    Ok(())
}

/// Seven bits a byte, the lowest first.
fn integer(rest: &mut &[u8]) -> Result<u64, Stop> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let next = byte(rest)?;
        value |= u64::from(next & 0x7f) << shift;
        if next & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Stop::Malformed)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn found(footer: &[u8]) -> Option<String> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"PAR1").unwrap();
        file.write_all(footer).unwrap();
        let len = footer.len() as u32;
        file.write_all(&len.to_le_bytes()).unwrap();
        file.write_all(b"PAR1").unwrap();
        impossible_list(&file).unwrap()
    }

    #[test]
    fn a_list_longer_than_the_footer_is_found_at_any_depth() {
        // Field 1: an integer; field 2: a structure with a list of 1,000 booleans in field 20.
        let nested = [
            0x15, 0x80, 0x01, 0x1c, 0x09, 0x28, 0xf1, 0xe8, 0x07, 1, 0, 0,
        ];
        let message = found(&nested).unwrap();
        assert_eq!(message, "a list of 1000 elements in the last 3 bytes");
        // The same with one element; then a map of one integer to a text, a double, a byte.
        let sound = [
            0x1c, 0x09, 0x28, 0x11, 1, 0, 0x1b, 1, 0x58, 2, 3, b'a', b'b', b'c',
        ];
        assert_eq!(
            found(&[&sound[..], &[0x17], &[0; 8], &[0x13, 9, 0]].concat()),
            None
        );
    }

    #[test]
    fn other_damage_is_left_to_the_decoder() {
        for footer in [
            &b""[..],
            &[0x1c; 200],
            &[0x1f],
            &[0x15, 0xff],
            &[0x18, 0x7f],
        ] {
            assert_eq!(found(footer), None);
        }
    }
}
