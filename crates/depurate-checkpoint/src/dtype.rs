//! Element types of stored tensors.

use std::fmt;

use serde::Serialize;

/// The type of a tensor's elements, as a safetensors header names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "UPPERCASE")]
#[non_exhaustive]
pub enum Dtype {
    /// 64-bit floating point.
    F64,
    /// 32-bit floating point.
    F32,
    /// IEEE half precision.
    F16,
    /// Brain floating point: the upper half of an `f32`.
    BF16,
    /// Signed 64-bit integer.
    I64,
    /// Signed 32-bit integer.
    I32,
    /// Signed 16-bit integer.
    I16,
    /// Signed byte.
    I8,
    /// Unsigned 64-bit integer.
    U64,
    /// Unsigned 32-bit integer.
    U32,
    /// Unsigned 16-bit integer.
    U16,
    /// Unsigned byte.
    U8,
    /// One byte for each truth value.
    Bool,
    /// A type that no diffusers UNet is published in: complex, or a float of 8 bits and fewer.
    Other,
}

impl Dtype {
    /// Whether [`Weights::read_f32`](crate::Weights::read_f32) can read it.
    pub fn is_float(self) -> bool {
        self.float_bytes().is_some()
    }

    /// The value that is read back after storing `value` in this type; of a type of 32 bits or more `value` itself.
    pub fn rounded(self, value: f32) -> f32 {
        match self {
            Self::F16 => half::f16::from_f32(value).to_f32(),
            Self::BF16 => half::bf16::from_f32(value).to_f32(),
            _ => value,
        }
    }

    /// Bytes for each element of a float type, `None` for the others.
    pub(crate) fn float_bytes(self) -> Option<usize> {
        match self {
            Self::F64 => Some(8),
            Self::F32 => Some(4),
            Self::F16 | Self::BF16 => Some(2),
            _ => None,
        }
    }

    /// Calls `f` with every element of a float tensor, widened (or, for F64, rounded) to `f32`; does nothing for other types.
    pub(crate) fn for_each_f32(self, bytes: &[u8], f: impl FnMut(f32)) {
        match self {
            Self::F64 => each::<8>(bytes, |b| f64::from_le_bytes(b) as f32, f),
            Self::F32 => each::<4>(bytes, f32::from_le_bytes, f),
            Self::F16 => each::<2>(bytes, |b| half::f16::from_le_bytes(b).to_f32(), f),
            Self::BF16 => each::<2>(bytes, |b| half::bf16::from_le_bytes(b).to_f32(), f),
            _ => {}
        }
    }
}

/// The stored bytes need not be aligned, so every element is taken by value.
fn each<const N: usize>(bytes: &[u8], decode: impl Fn([u8; N]) -> f32, mut f: impl FnMut(f32)) {
    for chunk in bytes.as_chunks::<N>().0 {
        f(decode(*chunk));
    }
}

impl From<safetensors::Dtype> for Dtype {
    fn from(stored: safetensors::Dtype) -> Self {
        use safetensors::Dtype as S;
        match stored {
            S::F64 => Self::F64,
            S::F32 => Self::F32,
            S::F16 => Self::F16,
            S::BF16 => Self::BF16,
            S::I64 => Self::I64,
            S::I32 => Self::I32,
            S::I16 => Self::I16,
            S::I8 => Self::I8,
            S::U64 => Self::U64,
            S::U32 => Self::U32,
            S::U16 => Self::U16,
            S::U8 => Self::U8,
            S::BOOL => Self::Bool,
            _ => Self::Other,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F64 => "F64",
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::I64 => "I64",
            Self::I32 => "I32",
            Self::I16 => "I16",
            Self::I8 => "I8",
            Self::U64 => "U64",
            Self::U32 => "U32",
            Self::U16 => "U16",
            Self::U8 => "U8",
            Self::Bool => "BOOL",
            Self::Other => "OTHER",
        })
    }
}
