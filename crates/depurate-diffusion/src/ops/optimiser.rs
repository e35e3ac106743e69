//! Steps of an optimiser on plain tensors: nothing here is differentiated.

use burn::{
    backend::{Backend, Dispatch, ExtensionType, Flex, backend_extension, tensor::FloatTensor},
    tensor::Tensor,
};
use burn_flex::FlexTensor;
pub use depurate_kernels::adam::Step as AdamStep;
use depurate_kernels::{adam as kernel, vectors};

use super::{
    flex::{contiguous, own_values, owned, tensor, values},
    framework::{self, has_kernels},
};

/// Parameters with their moments, all of one length.
#[derive(Debug, Clone)]
pub struct Moved {
    /// The parameters.
    pub values: Tensor<1>,
    /// First moments.
    pub first: Tensor<1>,
    /// Second moments.
    pub second: Tensor<1>,
}

/// One step of Adam with decoupled weight decay.
pub fn adam(at: Moved, gradient: Tensor<1>, step: AdamStep) -> Moved {
    if !has_kernels(&gradient.device()) {
        return framework::adam(at, gradient, step);
    }
    let moved = Dispatch::adam_op(
        at.values.into_dispatch(),
        at.first.into_dispatch(),
        at.second.into_dispatch(),
        gradient.into_dispatch(),
        step,
    );
    Moved {
        values: Tensor::from_dispatch(moved.values),
        first: Tensor::from_dispatch(moved.first),
        second: Tensor::from_dispatch(moved.second),
    }
}

/// `decay average + (1 - decay) values`.
pub fn average(average: Tensor<1>, values: Tensor<1>, decay: f64) -> Tensor<1> {
    if !has_kernels(&values.device()) {
        return average * decay + values * (1.0 - decay);
    }
    Tensor::from_dispatch(Dispatch::average_op(
        average.into_dispatch(),
        values.into_dispatch(),
        decay,
    ))
}

/// `Σ x²` as a tensor of one element.
pub fn sum_of_squares(x: Tensor<1>) -> Tensor<1> {
    if !has_kernels(&x.device()) {
        return x.square().sum();
    }
    Tensor::from_dispatch(Dispatch::sum_of_squares_op(x.into_dispatch()))
}

/// [`Moved`] as a backend has it.
#[derive(ExtensionType)]
pub struct MovedTensors<B: Backend> {
    values: FloatTensor<B>,
    first: FloatTensor<B>,
    second: FloatTensor<B>,
}

/// The operations.
#[backend_extension(Flex)]
pub trait OptimiserOps: Backend {
    /// See [`adam`].
    fn adam_op(
        values: FloatTensor<Self>,
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        step: AdamStep,
    ) -> MovedTensors<Self>;
    /// See [`average`].
    fn average_op(
        average: FloatTensor<Self>,
        values: FloatTensor<Self>,
        decay: f64,
    ) -> FloatTensor<Self>;
    /// See [`sum_of_squares`].
    fn sum_of_squares_op(x: FloatTensor<Self>) -> FloatTensor<Self>;
}

impl OptimiserOps for Flex {
    fn adam_op(
        parameters: FlexTensor,
        first: FlexTensor,
        second: FlexTensor,
        gradient: FlexTensor,
        step: AdamStep,
    ) -> MovedTensors<Self> {
        let gradient = contiguous(gradient);
        let [mut parameters, mut first, mut second] = [parameters, first, second].map(owned);
        if let (Some(p), Some(m), Some(v)) = (
            own_values(&mut parameters),
            own_values(&mut first),
            own_values(&mut second),
        ) {
            kernel::step(p, values(&gradient), m, v, step);
        }
        MovedTensors {
            values: parameters,
            first,
            second,
        }
    }

    fn average_op(average: FlexTensor, parameters: FlexTensor, decay: f64) -> FlexTensor {
        let parameters = contiguous(parameters);
        let mut average = owned(average);
        if let Some(average) = own_values(&mut average) {
            let share = (1.0 - decay) as f32;
            vectors::blend(share, values(&parameters), decay as f32, average);
        }
        average
    }

    fn sum_of_squares_op(x: FlexTensor) -> FlexTensor {
        let x = contiguous(x);
        tensor(vec![vectors::sum_of_squares(values(&x)) as f32], &[1])
    }
}
