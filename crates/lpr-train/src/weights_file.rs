//! Named arrays in safetensors files.

use std::io::{self, Write};
use std::path::Path;

use burn::tensor::Tensor;
use lpr_model::parameters::{HostTensor, TensorMap};
use safetensors::tensor::{Metadata, TensorInfo};
use safetensors::{Dtype, SafeTensors};

/// The data of a file begins at a multiple of this many bytes.
const ALIGNMENT: usize = 8;

/// Numbers that are written or copied at a time: what a core has near.
const PIECE: usize = 1 << 16;

/// An array of 32-bit floats that can be written.
pub trait Array {
    /// Its shape.
    fn shape(&self) -> &[usize];
    /// Its values, the last axis first.
    fn into_values(self) -> impl AsRef<[f32]>;
}

impl Array for &HostTensor {
    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn into_values(self) -> impl AsRef<[f32]> {
        self.values.as_slice()
    }
}

/// A tensor that waits to be written. Its memory is shared until then.
pub struct Held {
    shape: Vec<usize>,
    tensor: Tensor<1>,
}

impl Held {
    /// Holds a tensor of 32-bit floats.
    pub fn new<const D: usize>(tensor: Tensor<D>) -> Self {
        let shape = tensor.dims().to_vec();
        let length = tensor.shape().num_elements();
        Self {
            shape,
            tensor: tensor.reshape([length]),
        }
    }
}

impl Array for Held {
    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn into_values(self) -> impl AsRef<[f32]> {
        HostTensor::from_tensor(self.tensor).values
    }
}

/// Writes a safetensors file of `arrays` to `out`, and lets go of each as it is written.
///
/// # Errors
/// Those of `out`, and a value that is not finite; what was written until then is no such file.
pub fn write<A: Array>(out: &mut dyn Write, mut arrays: Vec<(String, A)>) -> io::Result<()> {
    arrays.sort_by(|(a, _), (b, _)| a.cmp(b));
    let mut header = serde_json::to_vec(&metadata(&arrays)?)?;
    header.resize(header.len().next_multiple_of(ALIGNMENT), b' ');
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    let mut bytes = vec![0; PIECE * size_of::<f32>()];
    for (name, array) in arrays {
        let values = array.into_values();
        for (index, piece) in values.as_ref().chunks(PIECE).enumerate() {
            check_finite(&name, index * PIECE, piece)?;
            let (places, _) = bytes.as_chunks_mut();
            for (place, value) in places.iter_mut().zip(piece) {
                *place = value.to_le_bytes();
            }
            out.write_all(&bytes[..size_of_val(piece)])?;
        }
    }
    Ok(())
}

/// The header: shapes, and places in the order of `arrays`.
fn metadata<A: Array>(arrays: &[(String, A)]) -> io::Result<Metadata> {
    let mut start = 0;
    let infos = arrays.iter().map(|(name, array)| {
        let shape = array.shape().to_vec();
        let end = start + shape.iter().product::<usize>() * size_of::<f32>();
        let data_offsets = (std::mem::replace(&mut start, end), end);
        let info = TensorInfo {
            dtype: Dtype::F32,
            shape,
            data_offsets,
        };
        (name.clone(), info)
    });
    let format = [("format".to_owned(), "pt".to_owned())].into();
    Metadata::new(Some(format), infos.collect()).map_err(io::Error::other)
}

/// Refuses a piece of an array, `start` values after its beginning.
fn check_finite(name: &str, start: usize, values: &[f32]) -> io::Result<()> {
    let Some(at) = values.iter().position(|value| !value.is_finite()) else {
        return Ok(());
    };
    let (value, at) = (values[at], start + at);
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
            check_finite(name, 0, &tensor.values)?;
            Ok((name.to_owned(), tensor))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use safetensors::tensor::TensorView;

    use super::*;

    fn write_to(path: &Path, tensors: &TensorMap) -> io::Result<()> {
        let arrays = tensors.iter().map(|(name, tensor)| (name.clone(), tensor));
        // Any order will do.
        write(&mut File::create(path)?, arrays.rev().collect())
    }

    #[test]
    fn every_bit_survives_a_file_and_the_library_would_have_written_the_same() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("w.safetensors");
        let odd = [
            0.0,
            -0.0,
            f32::MIN_POSITIVE / 2.0,
            f32::MAX,
            1.0 / 3.0,
            -7.5,
        ];
        let tensor = |shape: &[usize]| HostTensor {
            shape: shape.to_vec(),
            values: odd.repeat(PIECE)[..shape.iter().product()].to_vec(),
        };
        let shapes: [(&str, &[usize]); 6] = [
            ("a.b", &[2, 3]),
            ("a", &[1]),
            ("empty", &[0, 4]),
            ("piece", &[PIECE]),
            ("more", &[3, PIECE / 3 + 1]),
            ("scalar", &[]),
        ];
        let tensors: TensorMap = shapes
            .iter()
            .map(|(name, shape)| ((*name).to_owned(), tensor(shape)))
            .collect();
        write_to(&path, &tensors).expect("writes");
        let back = read(&path).expect("reads");
        assert_eq!(back.len(), tensors.len());
        let mut views = Vec::new();
        for (name, tensor) in &tensors {
            assert_eq!(back[name].shape, tensor.shape);
            let bits = |t: &HostTensor| t.values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&back[name]), bits(tensor));
            let bytes: Vec<u8> = tensor.values.iter().flat_map(|v| v.to_le_bytes()).collect();
            views.push((name, tensor.shape.clone(), bytes));
        }
        let views = views.iter().map(|(name, shape, bytes)| {
            let view = TensorView::new(Dtype::F32, shape.clone(), bytes).expect("fits");
            (name, view)
        });
        let format = [("format".to_owned(), "pt".to_owned())].into();
        let expected = safetensors::serialize(views, Some(format)).expect("fits");
        assert!(std::fs::read(&path).expect("reads") == expected);
    }

    #[test]
    fn a_tensor_that_is_held_is_written_as_it_was() {
        let device = burn::tensor::Device::flex();
        let tensor = Tensor::<2>::from_floats([[1.0, 2.0], [3.0, 4.0]], &device);
        let mut held = Vec::new();
        write(&mut held, vec![("w".to_owned(), Held::new(tensor))]).expect("written");
        let values = vec![1.0, 2.0, 3.0, 4.0];
        let shape = vec![2, 2];
        let mut host = Vec::new();
        let tensor = HostTensor { shape, values };
        write(&mut host, vec![("w".to_owned(), &tensor)]).expect("written");
        assert_eq!(held, host);
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
            let mut values = vec![1.0; PIECE + 7];
            values[PIECE + 3] = bad;
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            let shape = vec![values.len()];
            let view = TensorView::new(Dtype::F32, shape.clone(), &bytes).expect("fits");
            safetensors::serialize_to_file([("a.b", view)], None, &path).expect("written");
            let tensors: TensorMap = [("a.b".to_owned(), HostTensor { shape, values })].into();
            let named = format!("value {} of `a.b`", PIECE + 3);
            let error = read(&path).expect_err("refused").to_string();
            assert!(error.contains(&named), "{error}");
            let error = write_to(&path, &tensors).expect_err("refused").to_string();
            assert!(error.contains(&named), "{error}");
            read(&path).expect_err("a file that breaks off is none");
        }
    }
}
