//! Sizes of convolutions.

/// Sizes of a convolution's input and output channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvShape {
    /// Images.
    pub batch: usize,
    /// Input channels.
    pub c_in: usize,
    /// Output channels.
    pub c_out: usize,
    /// Rows of the input.
    pub height: usize,
    /// Columns of the input.
    pub width: usize,
}

impl ConvShape {
    /// Elements of the input.
    pub fn input_len(&self) -> usize {
        self.batch * self.c_in * self.height * self.width
    }
    /// Whether there is nothing to compute.
    pub(crate) fn is_empty(&self) -> bool {
        self.input_len() * self.c_out == 0
    }
}

/// Where a stride-2 convolution pads its input with zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stride2Pad {
    /// One row and column on every side.
    Symmetric,
    /// One row below and one column to the right (`downsample_padding = 0` in diffusers).
    AfterOnly,
}

impl Stride2Pad {
    /// Rows and columns of the output: `(size + padding - 3) / 2 + 1`. The input has at least 2 of each (1 if symmetric).
    pub fn out_size(self, height: usize, width: usize) -> (usize, usize) {
        let pads = self.before() + 1;
        ((height + pads - 3) / 2 + 1, (width + pads - 3) / 2 + 1)
    }
    /// Zeros before the first row and column.
    pub(crate) fn before(self) -> usize {
        match self {
            Stride2Pad::Symmetric => 1,
            Stride2Pad::AfterOnly => 0,
        }
    }
}

/// Panics unless a slice has the length that its shape says.
#[track_caller]
pub(crate) fn check(name: &str, slice: &[f32], expected: usize) {
    assert!(
        slice.len() == expected,
        "{name} has {} elements, its shape says {expected}",
        slice.len()
    );
}
