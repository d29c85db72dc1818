//! Named arrays in safetensors files.

use std::borrow::Cow;
use std::io;
use std::path::Path;

use lpr_model::parameters::{HostTensor, TensorMap};
use safetensors::tensor::View;
use safetensors::{Dtype, SafeTensors};

/// An array as safetensors wants it; its bytes are made when they are written.
struct Floats<'a>(&'a HostTensor);

impl View for Floats<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.0.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let bytes = self.0.values.iter().flat_map(|v| v.to_le_bytes());
        bytes.collect::<Vec<u8>>().into()
    }

    fn data_len(&self) -> usize {
        size_of_val(self.0.values.as_slice())
    }
}

/// Writes `tensors` to a new file at `path`.
///
/// # Errors
/// If the file cannot be written, or a value is not finite; then there is no file.
pub fn write<'a>(
    path: &Path,
    tensors: impl IntoIterator<Item = (&'a String, &'a HostTensor)>,
) -> io::Result<()> {
    let tensors: Vec<_> = tensors.into_iter().collect();
    tensors
        .iter()
        .try_for_each(|(name, tensor)| check_finite(name, tensor))?;
    let views = tensors
        .into_iter()
        .map(|(name, tensor)| (name, Floats(tensor)));
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    safetensors::serialize_to_file(views, Some(metadata), path).map_err(io::Error::other)
}

fn check_finite(name: &str, tensor: &HostTensor) -> io::Result<()> {
    let Some(at) = tensor.values.iter().position(|value| !value.is_finite()) else {
        return Ok(());
    };
    let value = tensor.values[at];
    Err(invalid(format!(
        "value {at} of `{name}` is {value}, which is no weight"
    )))
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// Reads all arrays of the file at `path`; they must be 32-bit floats.
///
/// # Errors
/// If the file cannot be read, is not a safetensors file, or holds another type of number or one that
/// is not finite.
pub fn read(path: &Path) -> io::Result<TensorMap> {
    let bytes = std::fs::read(path)?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| invalid(e.to_string()))?;
    file.iter()
        .map(|(name, view)| {
            if view.dtype() != Dtype::F32 {
                return Err(invalid(format!(
                    "`{name}` holds {:?}, only F32 is read",
                    view.dtype()
                )));
            }
            let tensor = HostTensor {
                shape: view.shape().to_vec(),
                values: view
                    .data()
                    .as_chunks::<4>()
                    .0
                    .iter()
                    .map(|b| f32::from_le_bytes(*b))
                    .collect(),
            };
            check_finite(name, &tensor)?;
            Ok((name.to_owned(), tensor))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_survives_a_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("w.safetensors");
        let values = vec![
            0.0,
            -0.0,
            f32::MIN_POSITIVE / 2.0,
            f32::MAX,
            1.0 / 3.0,
            -7.5,
        ];
        let shape = vec![2, 3];
        let tensors: TensorMap = [("a.b".to_owned(), HostTensor { shape, values })].into();
        write(&path, &tensors).expect("writes");
        let back = read(&path).expect("reads");
        let bits = |map: &TensorMap| -> Vec<u32> {
            map["a.b"].values.iter().map(|v| v.to_bits()).collect()
        };
        assert_eq!(bits(&back), bits(&tensors));
        assert_eq!(back["a.b"].shape, [2, 3]);
    }

    #[test]
    fn a_file_of_something_else_is_an_error() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("w.safetensors");
        std::fs::write(&path, b"not a tensor in sight").expect("writes");
        let error = read(&path).expect_err("garbage");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn numbers_that_are_no_weights_are_neither_written_nor_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("w.safetensors");
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let tensor = HostTensor {
                shape: vec![2],
                values: vec![1.0, bad],
            };
            let tensors: TensorMap = [("a.b".to_owned(), tensor)].into();
            let error = write(&path, &tensors).expect_err("refused").to_string();
            assert!(error.contains("value 1 of `a.b`"), "{error}");
            assert!(!path.exists());
            let views = tensors.iter().map(|(name, tensor)| (name, Floats(tensor)));
            safetensors::serialize_to_file(views, None, &path).expect("written");
            let error = read(&path).expect_err("refused").to_string();
            assert!(error.contains("value 1 of `a.b`"), "{error}");
            std::fs::remove_file(&path).expect("removed");
        }
    }
}
