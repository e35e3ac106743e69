//! Between the CPU backend's tensors and the kernels' slices.

use burn::{
    backend::TensorMetadata,
    tensor::{Bytes, DType, Shape},
};
use burn_flex::{FlexTensor, Layout};

/// A tensor of `values`.
pub(super) fn tensor(values: Vec<f32>, dims: &[usize]) -> FlexTensor {
    FlexTensor::new(
        Bytes::from_elems(values),
        Layout::contiguous(Shape::from(dims.to_vec())),
        DType::F32,
    )
}

/// Contiguous copy of `x` (a handle only, where it is contiguous already).
pub(super) fn contiguous(x: FlexTensor) -> FlexTensor {
    if x.as_slice::<f32>().is_some() {
        x
    } else {
        x.to_contiguous()
    }
}

/// The values of a contiguous tensor.
pub(super) fn values(x: &FlexTensor) -> &[f32] {
    x.as_slice::<f32>().expect(
        "a contiguous f32 tensor: every operand passes through `contiguous`, and models are f32",
    )
}

/// The values of a contiguous tensor, to be changed in place, if nobody else has them.
pub(super) fn own_values(x: &mut FlexTensor) -> Option<&mut [f32]> {
    let (start, end) = x.layout().contiguous_offsets()?;
    x.try_storage_mut::<f32>()?.get_mut(start..end)
}

/// A contiguous tensor that nobody else has: `x` itself or a copy.
pub(super) fn owned(mut x: FlexTensor) -> FlexTensor {
    if own_values(&mut x).is_some() {
        return x;
    }
    let x = contiguous(x);
    tensor(values(&x).to_vec(), x.shape().as_slice())
}

/// The sizes of a tensor of `D` dimensions.
pub(super) fn dims<const D: usize>(x: &FlexTensor) -> [usize; D] {
    x.shape().dims::<D>()
}
