//! Named arrays in safetensors files.

use std::borrow::Cow;
use std::cell::Cell;
use std::io;
use std::path::Path;

use burn::tensor::Tensor;
use lpr_model::parameters::{HostTensor, TensorMap};
use safetensors::tensor::View;
use safetensors::{Dtype, SafeTensorError, SafeTensors};

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
        .try_for_each(|(name, tensor)| check_finite(name, &tensor.values))?;
    let views = tensors
        .into_iter()
        .map(|(name, tensor)| (name, Floats(tensor)));
    write_views(path, views)
}

/// A tensor that waits to be written. Its memory is shared until then.
pub struct Held {
    shape: Vec<usize>,
    /// Taken when it is written, which lets go of the memory.
    tensor: Cell<Option<Tensor<1>>>,
}

impl Held {
    /// Holds a tensor of 32-bit floats.
    pub fn new<const D: usize>(tensor: Tensor<D>) -> Self {
        let shape = tensor.dims().to_vec();
        let length = tensor.shape().num_elements();
        Self {
            shape,
            tensor: Cell::new(Some(tensor.reshape([length]))),
        }
    }

    fn check_finite(&self, name: &str) -> io::Result<()> {
        let tensor = self.tensor.take();
        let values = tensor.clone().map(HostTensor::from_tensor);
        self.tensor.set(tensor);
        values.map_or(Ok(()), |values| check_finite(name, &values.values))
    }
}

impl View for Held {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The bytes; the writer asks once.
    fn data(&self) -> Cow<'_, [u8]> {
        let tensor = self.tensor.take().expect("a tensor is written once");
        let data = tensor.into_data().convert::<f32>();
        if cfg!(target_endian = "little") {
            return data.as_bytes().to_vec().into();
        }
        let values = data.iter::<f32>().flat_map(f32::to_le_bytes);
        values.collect::<Vec<u8>>().into()
    }

    fn data_len(&self) -> usize {
        self.shape.iter().product::<usize>() * size_of::<f32>()
    }
}

/// Writes `tensors` to a new file at `path` and lets go of each as it is written.
///
/// # Errors
/// If the file cannot be written, or a value is not finite; then there is no file.
pub fn write_held(path: &Path, tensors: Vec<(String, Held)>) -> io::Result<()> {
    tensors
        .iter()
        .try_for_each(|(name, tensor)| tensor.check_finite(name))?;
    write_views(path, tensors)
}

fn write_views<N, V>(path: &Path, tensors: impl IntoIterator<Item = (N, V)>) -> io::Result<()>
where
    N: AsRef<str> + Ord + std::fmt::Display,
    V: View,
{
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    safetensors::serialize_to_file(tensors, Some(metadata), path).map_err(|error| match error {
        SafeTensorError::IoError(error) => error,
        other => io::Error::other(other),
    })
}

fn check_finite(name: &str, values: &[f32]) -> io::Result<()> {
    let Some(at) = values.iter().position(|value| !value.is_finite()) else {
        return Ok(());
    };
    let value = values[at];
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
    read_where(path, |_| true)
}

/// As [`read`], only the arrays with a `wanted` name.
///
/// # Errors
/// Those of [`read`].
pub fn read_where(path: &Path, wanted: impl Fn(&str) -> bool) -> io::Result<TensorMap> {
    let bytes = std::fs::read(path)?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| invalid(e.to_string()))?;
    file.iter()
        .filter(|(name, _)| wanted(name))
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
            check_finite(name, &tensor.values)?;
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
