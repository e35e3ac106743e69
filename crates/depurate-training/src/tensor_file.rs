//! A safetensors file read whole, for data that are not weights: bytes, and notes in the header.

use std::{collections::HashMap, path::Path};

use safetensors::{Dtype, SafeTensors};

use crate::TrainingError;

/// Largest file read, in bytes: the CIFAR-10 training set as bytes is 154 MB.
const MAX_BYTES: u64 = 1 << 30;

/// Shape and row-major values of a tensor.
pub type Stored<T> = (Vec<usize>, Vec<T>);

/// An owned file; the header was checked against its length.
pub struct TensorFile<'a> {
    path: &'a Path,
    bytes: Vec<u8>,
}

impl<'a> TensorFile<'a> {
    /// Reads the whole file, of bounded size.
    ///
    /// # Errors
    /// When it cannot be read or is too large.
    pub fn read(path: &'a Path) -> Result<Self, TrainingError> {
        let io = |source| TrainingError::Io {
            path: path.into(),
            source,
        };
        let got = std::fs::metadata(path).map_err(io)?.len();
        if got > MAX_BYTES {
            return Err(TrainingError::TooLarge {
                path: path.into(),
                got,
                limit: MAX_BYTES,
            });
        }
        Ok(Self {
            path,
            bytes: std::fs::read(path).map_err(io)?,
        })
    }

    fn safetensors_error(&self) -> impl Fn(safetensors::SafeTensorError) -> TrainingError + '_ {
        |source| TrainingError::Safetensors {
            path: self.path.into(),
            source,
        }
    }

    /// The notes in the header.
    pub fn notes(&self) -> Result<HashMap<String, String>, TrainingError> {
        let (_, metadata) =
            SafeTensors::read_metadata(&self.bytes).map_err(self.safetensors_error())?;
        Ok(metadata.metadata().clone().unwrap_or_default())
    }

    /// Names of all tensors.
    pub fn names(&self) -> Result<Vec<String>, TrainingError> {
        let file = SafeTensors::deserialize(&self.bytes).map_err(self.safetensors_error())?;
        Ok(file.names().into_iter().map(str::to_owned).collect())
    }

    /// Shape and values of a byte tensor; `None` if there is no such tensor.
    pub fn bytes_of(&self, name: &str) -> Result<Option<Stored<u8>>, TrainingError> {
        self.of(name, Dtype::U8, |data| data.to_vec())
    }

    /// Shape and values of a 32-bit float tensor; `None` if there is no such tensor.
    pub fn floats_of(&self, name: &str) -> Result<Option<Stored<f32>>, TrainingError> {
        let decode = |data: &[u8]| {
            data.as_chunks::<4>()
                .0
                .iter()
                .map(|b| f32::from_le_bytes(*b))
                .collect()
        };
        self.of(name, Dtype::F32, decode)
    }

    fn of<T>(
        &self,
        name: &str,
        dtype: Dtype,
        decode: impl Fn(&[u8]) -> Vec<T>,
    ) -> Result<Option<Stored<T>>, TrainingError> {
        let file = SafeTensors::deserialize(&self.bytes).map_err(self.safetensors_error())?;
        let Ok(tensor) = file.tensor(name) else {
            return Ok(None);
        };
        if tensor.dtype() != dtype {
            let reason = format!(
                "tensor `{name}` has elements of type {:?}, expected {dtype:?}",
                tensor.dtype()
            );
            return Err(TrainingError::Data {
                path: self.path.into(),
                reason,
            });
        }
        Ok(Some((tensor.shape().to_vec(), decode(tensor.data()))))
    }
}
