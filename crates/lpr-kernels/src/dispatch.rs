//! Where an operation runs, and how a kernel with a hand-written gradient joins the graph of Burn's
//! autodiff.

use crate::profile::span;
use burn::{
    backend::{
        Autodiff, DispatchDevice, Flex,
        autodiff::{
            checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
            grads::Gradients,
            ops::{Backward, NodeGuard, Ops, OpsKind},
        },
        flex::FlexTensor,
        tensor::FloatTensor,
    },
    tensor::{DType, Device, Tensor},
};

/// Whether the kernels of this crate apply to this tensor: `f32` on Burn's CPU backend. All other
/// tensors take the portable way.
pub(crate) fn has_cpu_kernel<const D: usize>(tensor: &Tensor<D>) -> bool {
    tensor.dtype() == DType::F32 && is_cpu(&tensor.device())
}

/// Whether this is Burn's CPU backend, with autodiff or without.
pub(crate) fn is_cpu(device: &Device) -> bool {
    let device = device.clone().inner();
    matches!(device.as_dispatch(), DispatchDevice::Flex(_))
}

/// Runs `forward` and, if one of the parents is tracked, records `backward` with what `forward`
/// kept for it.
///
/// `forward` is told whether to keep something. `backward` turns the gradient of the output into
/// those of the parents; that is a span of this `name`.
pub(crate) fn record<C: CheckpointStrategy, S, const N: usize>(
    name: &'static str,
    parents: [NodeGuard; N],
    forward: impl FnOnce(bool) -> (FlexTensor, Option<S>),
    backward: fn(S, FlexTensor) -> [FlexTensor; N],
) -> FloatTensor<Autodiff<Flex, C>>
where
    S: Clone + Send + std::fmt::Debug + 'static,
{
    let operation = Operation { name, backward };
    match operation.prepare::<C>(parents).compute_bound().stateful() {
        OpsKind::Tracked(prepared) => {
            let (output, kept) = forward(true);
            let kept = kept.expect("a forward pass told to keep its state returns it");
            prepared.finish(kept, output)
        }
        OpsKind::UnTracked(prepared) => prepared.finish(forward(false).0),
    }
}

/// A node of the graph.
#[derive(Debug)]
struct Operation<S, const N: usize> {
    name: &'static str,
    backward: fn(S, FlexTensor) -> [FlexTensor; N],
}

impl<S, const N: usize> Backward<Flex, N> for Operation<S, N>
where
    S: Clone + Send + std::fmt::Debug + 'static,
{
    type State = S;

    fn backward(self, ops: Ops<S, N>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let _span = span(self.name);
        let grad = grads.consume::<Flex>(&ops.node);
        let parent_grads = (self.backward)(ops.state, grad);
        for (parent, grad) in ops.parents.into_iter().zip(parent_grads) {
            if let Some(parent) = parent {
                grads.register::<Flex>(parent.id, grad);
            }
        }
    }
}
