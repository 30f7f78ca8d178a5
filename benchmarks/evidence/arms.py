"""The arms: what each changes in a suite's config, as plain data.

Every arm shares the suite's data order, augmentation, initial weights of
shared parameters, schedule and evaluation with the others of its seed. Keys
are written "section.name". Letters are those of the evaluation protocol that
the suites follow; A1p is A1'.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from benchmarks._common import changed
from benchmarks.evidence.suites import StaticHost, Suite
from esper_jax.hosts import make_host
from esper_jax.types import InputError

GROWN = "B4"  # whose growth the controls take up
_NEVER: dict[str, Any] = {"tamiyo.policy": "never"}
_SLOTLESS: dict[str, Any] = {**_NEVER, "host.slots": ()}


class Given(NamedTuple):
  """What an arm may use.

  Attributes:
    suite: its suite.
    seed: of the run.
    config: the suite's, with the seed and the flags of the command line.
    rows: arm -> its row of the same seed, for the arms that it needs.
    folders: arm -> its run directory, likewise.
    policy: file of a learned policy; "" = none.
    policy_name: of the policy that reads it.
  """

  suite: Suite
  seed: int
  config: ConfigDict
  rows: Mapping[str, Mapping[str, Any]]
  folders: Mapping[str, Path]
  policy: str = ""
  policy_name: str = ""


class Arm(NamedTuple):
  """One arm.

  Attributes:
    name: letter.
    says: what it is.
    needs: arms of the same seed that must have been run before.
    changes: what it changes in the suite's config.
  """

  name: str
  says: str
  needs: tuple[str, ...]
  changes: Callable[[Given], dict[str, Any]]


def configure(arm: Arm, given: Given) -> ConfigDict:
  """The config of an arm's run; the trainer validates it."""
  return apply(given.config, arm.changes(given))


def apply(config: ConfigDict, changes: Mapping[str, Any]) -> ConfigDict:
  """A copy with keys "section.name" changed; the trainer validates it."""
  sections: dict[str, Any] = {}
  for key, value in changes.items():
    section, _, name = key.rpartition(".")
    if section:
      sections.setdefault(section, {})[name] = value
    else:
      sections[name] = value
  return changed(config, **sections)


def _replay(given: Given, **changes: Any) -> dict[str, Any]:
  """The recorded growth of the paired run; tamiyo's keys without section."""
  events = given.folders[GROWN] / "events.jsonl"
  own = {"policy": "replay", "replay": str(events), **changes}
  return {f"tamiyo.{name}": value for name, value in own.items()}


def _final(given: Given, initializer: str) -> dict[str, Any]:
  """The paired run's last network from the first step on."""
  return {
    **_replay(given, replay_final=True),
    "kasmina.initializer": initializer,
  }


def refitted(given: Given, reference: str) -> dict[str, Any]:
  """As many epochs of an arm as the grown run's total FLOPs pay for.

  The schedule is stretched or shrunk with the epochs: its decay is a share of
  the run already, its warm-up is scaled.

  Args:
    given: with rows of the grown run and of the reference.
    reference: arm whose epochs cost what one epoch will cost.
  """
  row = given.rows[reference]["result"]
  each = row["total_flops"] / row["epochs"]
  wanted = given.rows[GROWN]["result"]["total_flops"]
  epochs = max(1, round(wanted / each))
  warmup = given.config.optimizer.warmup_epochs
  share = epochs / given.config.train.epochs
  return {
    "train.epochs": epochs,
    "optimizer.warmup_epochs": float(warmup * share),
  }


def _by_hand(given: Given) -> dict[str, Any]:
  """A plain network of the usual proportions, at least as large."""
  static = given.suite.static
  if static is None:
    raise InputError(f"the suite {given.suite.name} names no host for A4")
  least = given.rows[GROWN]["result"]["params_final"]
  return {
    **_SLOTLESS,
    "host.name": static.name,
    "host.width": matched_width(static, least),
    "host.inner_widths": (),
  }


def matched_width(static: StaticHost, least: int) -> int:
  """The first width with at least so many parameters, else the last."""
  for width in static.widths:
    if parameters(static, width) >= least:
      return width
  return static.widths[-1]


def parameters(static: StaticHost, width: int) -> int:
  """Counts the parameters of a hand-designed host; nothing is computed."""
  host = make_host(
    static.name, num_classes=static.classes, width=width, slots=()
  )

  def init():
    x = jnp.zeros((1, *static.shape))
    return host.init({"params": jax.random.key(0)}, x, train=False)["params"]

  shapes = jax.tree.leaves(jax.eval_shape(init))
  return sum(math.prod(leaf.shape) for leaf in shapes)


def _learned(given: Given) -> dict[str, Any]:
  if not given.policy:
    raise InputError("arm P needs --policy=FILE, a learned policy")
  return {
    "tamiyo.policy": given.policy_name,
    "tamiyo.policy_path": given.policy,
  }


def _newborn(state: str, warm: bool) -> Callable[[Given], dict[str, Any]]:
  """The recorded growth, the optimizer state at birth another."""

  def changes(given: Given) -> dict[str, Any]:
    steps = {} if warm else {"optimizer.newborn_warmup_steps": 0}
    return {**_replay(given), "optimizer.newborn": state, **steps}

  return changes


_ALL = (
  Arm("A0", "growth code on, policy never", (), lambda g: dict(_NEVER)),
  Arm("A1", "the small network, without slots", (), lambda g: dict(_SLOTLESS)),
  Arm(
    "A1p",
    "A1': the small network for the grown run's total FLOPs",
    (GROWN, "A1"),
    lambda g: {**_SLOTLESS, **refitted(g, "A1")},
  ),
  Arm(
    "A2",
    "the grown run's final network from scratch, for as many epochs",
    (GROWN,),
    lambda g: _final(g, "random"),
  ),
  Arm(
    "A3",
    "the final network from scratch for the grown run's total FLOPs",
    (GROWN, "A2"),
    lambda g: {**_final(g, "random"), **refitted(g, "A2")},
  ),
  Arm(
    "A4",
    "a hand-designed network with at least the grown run's parameters",
    (GROWN,),
    _by_hand,
  ),
  Arm(
    "A5",
    "the grown run's seeds present from the start, alpha 1",
    (GROWN,),
    lambda g: _final(g, "zero_out"),
  ),
  Arm(
    "B1",
    "growth by the clock",
    (),
    lambda g: {"tamiyo.policy": "periodic", **g.suite.periodic},
  ),
  Arm(
    "B2",
    "the heuristic's growth at permuted places",
    (GROWN,),
    lambda g: _replay(g, replay_permute="slots", replay_seed=g.seed),
  ),
  Arm(
    "B3",
    "the heuristic's growth at permuted times",
    (GROWN,),
    lambda g: _replay(g, replay_permute="times", replay_seed=g.seed),
  ),
  Arm(GROWN, "the heuristic", (), lambda g: {"tamiyo.policy": "heuristic"}),
  Arm(
    "B5",
    "one-step look-ahead at the heuristic's times, by validation accuracy",
    (GROWN,),
    lambda g: {},  # `oracle` makes its schedule
  ),
  Arm("P", "the policy of --policy", (), _learned),
  Arm(
    "C2z", "newborn state zero, no warm-up", (GROWN,), _newborn("zero", False)
  ),
  Arm(
    "C2g",
    "newborn state zero, host's count",
    (GROWN,),
    _newborn("global_count", True),
  ),
  Arm(
    "C2gn",
    "host's count, no warm-up",
    (GROWN,),
    _newborn("global_count", False),
  ),
  Arm("C2r", "all states reset at a birth", (GROWN,), _newborn("reset", True)),
  Arm("C2rn", "all reset, no warm-up", (GROWN,), _newborn("reset", False)),
  Arm("C2c", "newborn state copied", (GROWN,), _newborn("copy", True)),
  Arm("C2cn", "copied, no warm-up", (GROWN,), _newborn("copy", False)),
)
ARMS: dict[str, Arm] = {arm.name: arm for arm in _ALL}


def in_order(names: tuple[str, ...]) -> tuple[str, ...]:
  """The arms asked for and those they need, each after what it needs.

  Raises:
    InputError: there is no such arm.
  """
  out: list[str] = []

  def add(name: str) -> None:
    if name not in ARMS:
      raise InputError(f"no such arm: {name}; valid are {', '.join(ARMS)}")
    for need in ARMS[name].needs:
      add(need)
    if name not in out:
      out.append(name)

  for name in names:
    add(name)
  return tuple(out)
