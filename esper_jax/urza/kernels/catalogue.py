"""All kernels by name."""

from esper_jax.urza.kernel import Kernel
from esper_jax.urza.kernels import (
  blend_backward,
  blend_forward,
  depthwise_backward,
  depthwise_forward,
  group_norm_backward,
  layer_norm_backward,
  lowrank_backward,
  lowrank_forward,
  lowrank_weights,
)

KERNELS: dict[str, Kernel] = {
  module.KERNEL.name: module.KERNEL
  for module in (
    lowrank_forward,
    lowrank_backward,
    lowrank_weights,
    blend_forward,
    blend_backward,
    depthwise_forward,
    depthwise_backward,
    group_norm_backward,
    layer_norm_backward,
  )
}
