"""Growth in a training loop of one's own: a slot, surgery, the lifecycle.

Command: .venv/bin/python examples/own_loop.py     (seconds on a CPU)
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from sklearn.datasets import load_digits

from esper_jax import Slot
from esper_jax.defaults import get_config
from esper_jax.kasmina import lifecycle, surgery
from esper_jax.tolaria.growth_options import make_rules
from esper_jax.types import Stage

# After which epoch the seed comes to which stage; the last is judged below.
MOVES = {2: Stage.GERMINATED, 4: Stage.BLENDING, 6: Stage.HOLDING}
EPOCHS, BATCH, SLOT = 8, 64, "middle"
# As in any run, but what is asked for happens at once, and blending is short.
RULES = make_rules(get_config(), EPOCHS)._replace(lead_epochs=0, blend_epochs=2)
CHAIN = optax.adam(3e-3)  # one state per group: the host, each seed


class Net(nn.Module):
  """Eight hidden units, and a place to grow."""

  @nn.compact
  def __call__(self, x):
    x = Slot(name=SLOT)(nn.relu(nn.Dense(8)(x)))
    return nn.Dense(10)(x)


class State(struct.PyTreeNode):
  """What surgery asks for, see `surgery.Growing`."""

  params: dict
  seeds: dict
  optimizer: dict
  age: dict
  average: dict | None = None


@jax.jit
def loss(groups, seeds, x, y):
  """Mean cross-entropy; groups are what is differentiated."""
  seeds = surgery.with_group_params(seeds, groups)
  logits = Net().apply({"params": groups["host"], "seeds": seeds}, x)
  return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


@jax.jit
def step(state, x, y):
  """One training step; the same program for a seed's whole life."""
  groups = surgery.group_params(state.params, state.seeds)
  gradients = jax.grad(loss)(groups, state.seeds, x, y)
  moved, chains = {}, {}
  for name, params in groups.items():
    change, chains[name] = CHAIN.update(gradients[name], state.optimizer[name])
    moved[name] = optax.apply_updates(params, change)
  seeds = surgery.with_group_params(state.seeds, moved)
  return state.replace(params=moved["host"], seeds=seeds, optimizer=chains)


def judge(state, key, x, y):
  """Whether the loss is lower with the seed than without."""
  silent = surgery.silence(state, SLOT, key)
  with_it, without = (
    loss(surgery.group_params(s.params, s.seeds), s.seeds, x, y)
    for s in (state, silent)
  )
  return Stage.FOSSILIZED if with_it < without else Stage.CULLED


def main():
  """Trains; returns the stage after each epoch, and the final state."""
  x, y = load_digits(return_X_y=True)
  x = jnp.asarray(x / 16, jnp.float32)
  y = jnp.asarray(y, jnp.int32)
  params = Net().init(jax.random.key(0), x[:1])["params"]
  spec = surgery.slot_table(lambda: Net().apply({"params": params}, x[:1]))
  state = State(
    params, {}, {"host": CHAIN.init(params)}, {"host": jnp.int32(0)}
  )
  slots, key, stages = lifecycle.initial(1), None, []
  for epoch in range(1, EPOCHS + 1):
    for start in range(0, 1280, BATCH):  # the rest is for validation
      batch = slice(start, start + BATCH)
      state = step(state, x[batch], y[batch])
    slots = lifecycle.tick(slots, RULES)
    move = MOVES.get(epoch, Stage.DORMANT)  # which asks for nothing
    if epoch == EPOCHS:
      move = judge(state, key, x[1280:], y[1280:])
    row = jnp.array([move, 0, epoch], jnp.int32).reshape(3, 1)
    slots, _ = lifecycle.impose(slots, *row, RULES)
    slots, planted, removed = lifecycle.enact(slots, RULES, epoch)
    if planted[0]:
      state, key = surgery.germinate(
        state, spec[SLOT], "dense", key=jax.random.key(1), optimizer=CHAIN
      )
    if removed[0]:
      state, key = surgery.cull(state, SLOT, key), None
    if key:
      alpha, isolation, updates = (v[0] for v in lifecycle.leaves(slots))
      state = surgery.set_leaves(
        state, SLOT, key, alpha=alpha, isolation=isolation, updates=updates
      )
    stages.append(Stage(int(slots.stage[0])))
    print(f"epoch {epoch}  {stages[-1].name.lower()}")
  return stages, state


if __name__ == "__main__":
  main()
