//! Parameters by name: visiting them, and replacing their values.
//!
//! A name is the path of fields from the model's root, joined by dots, for example
//! `model.layers.0.self_attn.q_proj.weight`. The variant of an enum of modules is not part of it,
//! so a name says where a parameter is, not which router or attention happens to own it.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::{Tensor, TensorData};
use thiserror::Error;

/// Reads every float parameter of a module.
pub trait ParameterVisitor {
    /// Called once per parameter, always in the same order.
    fn visit<const D: usize>(&mut self, name: &str, parameter: &Param<Tensor<D>>);
}

/// Replaces the value of every float parameter of a module.
pub trait ParameterMapper {
    /// Takes the value (without autodiff) and returns the new one of the same shape.
    fn map<const D: usize>(&mut self, name: &str, value: Tensor<D>) -> Tensor<D>;
}

/// Shows every float parameter of `module` to `visitor`.
pub fn visit_parameters<M: Module>(module: &M, visitor: &mut impl ParameterVisitor) {
    module.visit(&mut Named {
        path: Path::default(),
        inner: visitor,
    });
}

/// Replaces the value of every float parameter of `module`; the new parameters require gradients if
/// the old ones did.
pub fn map_parameters<M: Module>(module: M, mapper: &mut impl ParameterMapper) -> M {
    module.map(&mut Named {
        path: Path::default(),
        inner: mapper,
    })
}

/// An array of 32-bit floats in row-major order, off any device.
#[derive(Debug, Clone, PartialEq)]
pub struct HostTensor {
    /// Length of each axis.
    pub shape: Vec<usize>,
    /// The values; as many as the product of the shape.
    pub values: Vec<f32>,
}

/// Arrays by parameter name.
pub type TensorMap = BTreeMap<String, HostTensor>;

/// Everything that keeps a set of arrays from being the parameters of a module.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("the tensors do not fit the model: {}", .0.join("; "))]
pub struct ParameterMismatch(pub Vec<String>);

impl HostTensor {
    /// Copies a tensor to the host.
    pub fn from_tensor<const D: usize>(tensor: Tensor<D>) -> Self {
        let shape = tensor.dims().to_vec();
        let values = tensor
            .into_data()
            .convert::<f32>()
            .try_into_vec()
            .expect("converted to f32");
        Self { shape, values }
    }
}

/// Copies all float parameters of `module` to the host.
pub fn parameter_values<M: Module>(module: &M) -> TensorMap {
    struct Values(TensorMap);
    impl ParameterVisitor for Values {
        fn visit<const D: usize>(&mut self, name: &str, parameter: &Param<Tensor<D>>) {
            self.0
                .insert(name.to_owned(), HostTensor::from_tensor(parameter.val()));
        }
    }
    let mut values = Values(TensorMap::new());
    visit_parameters(module, &mut values);
    values.0
}

/// Replaces all float parameters of `module`.
///
/// # Errors
/// If a name is missing or unknown or a shape differs; all such problems are listed and nothing is
/// replaced.
pub fn with_parameter_values<M: Module>(
    module: M,
    mut values: TensorMap,
) -> Result<M, ParameterMismatch> {
    struct Replace<'a>(&'a mut TensorMap);
    impl ParameterMapper for Replace<'_> {
        fn map<const D: usize>(&mut self, name: &str, old: Tensor<D>) -> Tensor<D> {
            let new = self.0.remove(name).expect("every name was checked");
            Tensor::from_data(TensorData::new(new.values, new.shape), &old.device())
        }
    }
    let shapes = parameter_shapes(&module);
    let mut problems = Vec::new();
    for (name, shape) in &shapes {
        match values.get(name) {
            None => problems.push(format!("`{name}` is missing")),
            Some(found) if found.shape != *shape => problems.push(format!(
                "`{name}` has shape {:?}, the model needs {shape:?}",
                found.shape
            )),
            Some(_) => {}
        }
    }
    for name in values.keys() {
        if !shapes.iter().any(|(known, _)| known == name) {
            problems.push(format!("`{name}` is not a parameter of the model"));
        }
    }
    if problems.is_empty() {
        Ok(map_parameters(module, &mut Replace(&mut values)))
    } else {
        Err(ParameterMismatch(problems))
    }
}

/// Names and shapes of all float parameters, in visiting order.
pub fn parameter_shapes<M: Module>(module: &M) -> Vec<(String, Vec<usize>)> {
    struct Shapes(Vec<(String, Vec<usize>)>);
    impl ParameterVisitor for Shapes {
        fn visit<const D: usize>(&mut self, name: &str, parameter: &Param<Tensor<D>>) {
            self.0
                .push((name.to_owned(), parameter.lazy_shape().to_vec()));
        }
    }
    let mut shapes = Shapes(Vec::new());
    visit_parameters(module, &mut shapes);
    shapes.0
}

/// Names and shapes of the parameters that are trained, in visiting order; a router's state that
/// changes only after the step is not among them. Allocates nothing for a model that was not used.
///
/// # Panics
/// If `module` is on a device without autodiff, where a parameter does not show whether it is
/// trained.
pub fn trained_shapes<M: Module>(module: &M) -> Vec<(String, Vec<usize>)> {
    struct Shapes(Vec<(String, Vec<usize>)>);
    impl ParameterVisitor for Shapes {
        fn visit<const D: usize>(&mut self, name: &str, parameter: &Param<Tensor<D>>) {
            assert!(parameter.lazy_device().is_autodiff(), "{name}: no autodiff");
            // What is not trained has its value from the start (see `ParamInit::state`).
            if !parameter.is_initialized() || parameter.val().is_require_grad() {
                let shape = parameter.lazy_shape().to_vec();
                self.0.push((name.to_owned(), shape));
            }
        }
    }
    let mut shapes = Shapes(Vec::new());
    visit_parameters(module, &mut shapes);
    shapes.0
}

/// The path of the module being visited; enum variants are left out.
#[derive(Default)]
struct Path(Vec<String>);

impl Path {
    fn enter(&mut self, name: &str, container: &str) {
        if !is_enum(container) {
            self.0.push(name.to_owned());
        }
    }

    fn exit(&mut self, container: &str) {
        if !is_enum(container) {
            self.0.pop();
        }
    }
}

fn is_enum(container: &str) -> bool {
    container.starts_with("Enum:")
}

struct Named<'a, T> {
    path: Path,
    inner: &'a mut T,
}

impl<V: ParameterVisitor> ModuleVisitor for Named<'_, V> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, container: &str) {
        self.path.exit(container);
    }

    fn visit_float<const D: usize>(&mut self, parameter: &Param<Tensor<D>>) {
        self.inner.visit(&self.path.0.join("."), parameter);
    }
}

impl<M: ParameterMapper> ModuleMapper for Named<'_, M> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, container: &str) {
        self.path.exit(container);
    }

    fn map_float<const D: usize>(&mut self, parameter: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (id, value, mapper): (ParamId, _, _) = parameter.consume();
        let name = self.path.0.join(".");
        let value = if value.device().is_autodiff() {
            let requires_grad = value.is_require_grad();
            let new = Tensor::from_inner(self.inner.map(&name, value.inner()));
            new.set_require_grad(requires_grad)
        } else {
            self.inner.map(&name, value)
        };
        Param::from_mapped_value(id, value, mapper)
    }
}
