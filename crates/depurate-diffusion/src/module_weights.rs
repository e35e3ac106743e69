//! Parameters by their diffusers names: listing, loading, collecting.

use std::{collections::BTreeMap, path::Path};

use burn::{
    module::{Module, ModuleMapper, ModuleVisitor, Param},
    tensor::{Gradients, Tensor, TensorData},
};
use depurate_checkpoint::{SaveTensor, Weights, plan};

use crate::DiffusionError;

/// Name and shape of one parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParameterInfo {
    /// Name in the checkpoint, for example `down_blocks.0.resnets.0.conv1.weight`.
    pub name: String,
    /// Shape in PyTorch's layout.
    pub shape: Vec<usize>,
}

/// Every parameter's name and shape, without allocating any of them.
pub(crate) fn parameters<M: Module>(module: &M) -> Vec<ParameterInfo> {
    let mut listing = Listing::default();
    module.visit(&mut listing);
    listing.found
}

/// Replaces every parameter by the one of the same name in `weights`. A stored name that is not a parameter's is tried once
/// more as `rename` gives it; a tensor of a name that `ignored` says is left out.
///
/// # Errors
/// When a parameter is missing, unexpected, mis-shaped or not finite; `path` is named.
pub(crate) fn load<M: Module>(
    module: M,
    weights: &Weights,
    path: &Path,
    rename: &dyn Fn(&str) -> Option<String>,
    ignored: &dyn Fn(&str) -> bool,
) -> Result<M, DiffusionError> {
    let expected: Vec<_> = parameters(&module)
        .into_iter()
        .map(|info| (info.name, info.shape))
        .collect();
    let mut report = plan(&expected, weights, rename);
    report.unexpected.retain(|name| !ignored(name));
    let report = report.into_result(path)?;
    weights.check_finite()?;
    let mut failure = None;
    let module = with_values(module, |name| {
        let read = weights.read_f32(report.source(name).unwrap_or(name));
        read.map_err(|error| failure.get_or_insert(error)).ok()
    });
    match failure {
        None => Ok(module),
        Some(error) => Err(error.into()),
    }
}

/// Replaces the parameters that `value` gives values for, of the lengths of [`parameters`].
pub(crate) fn with_values<M: Module>(module: M, value: impl FnMut(&str) -> Option<Vec<f32>>) -> M {
    module.map(&mut Replacement {
        path: PathStack::default(),
        value,
    })
}

/// Every parameter's values under its checkpoint name.
pub(crate) fn to_tensors<M: Module>(module: &M) -> Vec<SaveTensor> {
    let mut collection = Collection::default();
    module.visit(&mut collection);
    collection.found
}

/// The module path of the parameter being visited. The variant of an enum is no part of it: it says how a layer is stored,
/// not where it is.
#[derive(Default)]
struct PathStack(Vec<String>);

impl PathStack {
    fn enter(&mut self, name: &str, container_type: &str) {
        let is_variant = container_type.starts_with("Enum:");
        self.0.push(if is_variant {
            String::new()
        } else {
            name.to_owned()
        });
    }

    fn exit(&mut self) {
        self.0.pop();
    }

    fn name(&self) -> String {
        let parts = self.0.iter().map(String::as_str);
        parts
            .filter(|part| !part.is_empty())
            .collect::<Vec<_>>()
            .join(".")
    }
}

#[derive(Default)]
struct Listing {
    path: PathStack,
    found: Vec<ParameterInfo>,
}

impl ModuleVisitor for Listing {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.enter(name, container_type);
    }
    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.exit();
    }
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let shape = param.lazy_shape().to_vec();
        self.found.push(ParameterInfo {
            name: self.path.name(),
            shape,
        });
    }
}

#[derive(Default)]
struct Collection {
    path: PathStack,
    found: Vec<SaveTensor>,
}

impl ModuleVisitor for Collection {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.enter(name, container_type);
    }
    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.exit();
    }
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let tensor = param.val();
        let shape = tensor.dims().to_vec();
        let data = tensor.into_data().iter::<f32>().collect();
        self.found.push(SaveTensor {
            name: self.path.name(),
            shape,
            data,
        });
    }
}

/// Asks for the values of one parameter after the other, so that those of all are never in memory twice.
struct Replacement<F> {
    path: PathStack,
    value: F,
}

impl<F: FnMut(&str) -> Option<Vec<f32>>> ModuleMapper for Replacement<F> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.enter(name, container_type);
    }
    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.exit();
    }
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(values) = (self.value)(&self.path.name()) else {
            return param;
        };
        let shape = param.lazy_shape();
        let device = param.lazy_device();
        let tensor = Tensor::from_data(TensorData::new(values, shape), &device);
        Param::initialized(param.id, tensor).set_require_grad(true)
    }
}

/// Gradients of a loss in the network's parameters, under their checkpoint names. A parameter that
/// the loss does not reach, or that is frozen, has none.
pub fn gradients<M: Module>(module: &M, gradients: &Gradients) -> Vec<SaveTensor> {
    let mut collection = GradientCollection {
        path: PathStack::default(),
        gradients,
        found: vec![],
    };
    module.visit(&mut collection);
    collection.found
}

struct GradientCollection<'a> {
    path: PathStack,
    gradients: &'a Gradients,
    found: Vec<SaveTensor>,
}

impl ModuleVisitor for GradientCollection<'_> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.enter(name, container_type);
    }
    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.exit();
    }
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = param.val().grad(self.gradients) {
            let shape = gradient.dims().to_vec();
            self.found.push(SaveTensor {
                name: self.path.name(),
                shape,
                data: gradient.into_data().iter::<f32>().collect(),
            });
        }
    }
}

/// Name to values `[n]`, without autodiff: what optimisers work on.
pub type Flat = BTreeMap<String, Tensor<1>>;

/// The values of every parameter.
pub fn flat_values<M: Module>(module: &M) -> Flat {
    let mut collection = FlatCollection::default();
    module.visit(&mut collection);
    collection.found
}

/// The gradient of every parameter that has one.
pub fn flat_gradients<M: Module>(module: &M, gradients: Gradients) -> Flat {
    let mut collection = FlatCollection {
        gradients: Some(gradients),
        ..FlatCollection::default()
    };
    module.visit(&mut collection);
    collection.found
}

/// The module with the parameters that `values` names replaced; they require gradients again.
pub fn with_flat<M: Module>(module: M, values: &Flat) -> M {
    module.map(&mut FlatReplacement {
        path: PathStack::default(),
        values,
    })
}

/// The module in which only the parameters that `trained` names ask for gradients. Those keep their place in a graph: gradients
/// collected of `module` itself are theirs.
pub fn frozen_but<M: Module>(module: M, trained: &dyn Fn(&str) -> bool) -> M {
    module.map(&mut Freezing {
        path: PathStack::default(),
        trained,
    })
}

struct Freezing<'a> {
    path: PathStack,
    trained: &'a dyn Fn(&str) -> bool,
}

impl ModuleMapper for Freezing<'_> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.enter(name, container_type);
    }
    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.exit();
    }
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if (self.trained)(&self.path.name()) {
            return param;
        }
        let (id, tensor, mapper) = param.consume();
        Param::from_mapped_value(id, Tensor::from_inner(tensor.inner()), mapper)
    }
}

#[derive(Default)]
struct FlatCollection {
    path: PathStack,
    gradients: Option<Gradients>,
    found: Flat,
}

impl ModuleVisitor for FlatCollection {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.enter(name, container_type);
    }
    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.exit();
    }
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let tensor = match &mut self.gradients {
            Some(gradients) => param.val().grad_remove(gradients),
            None => Some(param.val().inner()),
        };
        if let Some(tensor) = tensor {
            self.found.insert(self.path.name(), tensor.reshape([-1]));
        }
    }
}

struct FlatReplacement<'a> {
    path: PathStack,
    values: &'a Flat,
}

impl ModuleMapper for FlatReplacement<'_> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.enter(name, container_type);
    }
    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.exit();
    }
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(values) = self.values.get(&self.path.name()) else {
            return param;
        };
        let (id, tensor, mapper) = param.consume();
        let updated: Tensor<D> = values.clone().reshape(tensor.dims());
        Param::from_mapped_value(id, Tensor::from_inner(updated).require_grad(), mapper)
    }
}
