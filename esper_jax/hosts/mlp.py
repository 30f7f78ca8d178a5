"""A multilayer perceptron with a slot after every hidden layer."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from esper_jax.kasmina.slot import Slot


class MLP(nn.Module):
  """Dense layers with ReLU and a linear head; images are flattened.

  Hidden layer n (from 1) is the module `hidden<n>`; the slot after its ReLU
  is `slot<n>`. A name that is not in `slots` makes no module.

  Attributes:
    num_classes: number of logits.
    width: features of every hidden layer.
    depth: number of hidden layers.
    slots: names of the slots to place.
    dtype: of the computation; parameters and logits are float32.
  """

  num_classes: int
  width: int = 128
  depth: int = 2
  slots: Sequence[str] = ()
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
    """Returns the logits, float32 [batch, num_classes].

    Args:
      x: float [batch, ...].
      train: passed to the slots; the layers are the same either way.
    """
    x = x.reshape(x.shape[0], -1)
    for n in range(1, self.depth + 1):
      x = nn.Dense(
        self.width,
        kernel_init=nn.initializers.he_normal(),
        dtype=self.dtype,
        name=f"hidden{n}",
      )(x)
      x = nn.relu(x)
      if f"slot{n}" in self.slots:
        x = Slot(name=f"slot{n}")(x, train=train)
    return nn.Dense(self.num_classes, name="head")(x.astype(jnp.float32))


def mlp_slots(depth: int) -> tuple[str, ...]:
  """Returns the names of every possible slot, in the order they run."""
  return tuple(f"slot{n}" for n in range(1, depth + 1))
