//! A network's parameters and gradients as flat tensors under their checkpoint names.

use std::collections::BTreeMap;

use burn::{
    module::{Module, ModuleMapper, ModuleVisitor, Param},
    tensor::{Gradients, Tensor},
};
use depurate_diffusion::unet2d::UNet2D;

/// Name to values `[n]`, without autodiff.
pub(crate) type Flat = BTreeMap<String, Tensor<1>>;

/// The values of every parameter.
pub(crate) fn values(unet: &UNet2D) -> Flat {
    let mut collect = Collect {
        path: Vec::new(),
        gradients: None,
        found: Flat::new(),
    };
    unet.visit(&mut collect);
    collect.found
}

/// The gradient of every parameter that has one.
pub(crate) fn gradients(unet: &UNet2D, gradients: Gradients) -> Flat {
    let mut collect = Collect {
        path: Vec::new(),
        gradients: Some(gradients),
        found: Flat::new(),
    };
    unet.visit(&mut collect);
    collect.found
}

/// The network with the parameters that `values` names replaced; they require gradients again.
pub(crate) fn replaced(unet: UNet2D, values: &Flat) -> UNet2D {
    unet.map(&mut Replace {
        path: Vec::new(),
        values,
    })
}

struct Collect {
    path: Vec<String>,
    gradients: Option<Gradients>,
    found: Flat,
}

impl ModuleVisitor for Collect {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.to_owned());
    }
    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let tensor = match &mut self.gradients {
            Some(gradients) => param.val().grad_remove(gradients),
            None => Some(param.val().inner()),
        };
        if let Some(tensor) = tensor {
            self.found.insert(self.path.join("."), tensor.reshape([-1]));
        }
    }
}

struct Replace<'a> {
    path: Vec<String>,
    values: &'a Flat,
}

impl ModuleMapper for Replace<'_> {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.to_owned());
    }
    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(values) = self.values.get(&self.path.join(".")) else {
            return param;
        };
        let (id, tensor, mapper) = param.consume();
        let updated: Tensor<D> = values.clone().reshape(tensor.dims());
        Param::from_mapped_value(id, Tensor::from_inner(updated).require_grad(), mapper)
    }
}
