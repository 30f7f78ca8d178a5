"""What a run costs: floating-point operations, seconds, repeated work.

FLOPs are XLA's cost analysis of a *single-step* program, times the steps. XLA
counts 2 per multiply-add of a dot or convolution (positions that read only
padding left out), 1 per element of other arithmetic, none for
transcendentals, data movement or foreign calls. It counts the body of a scan
once, whatever its length: the chunked program must not be counted in place of
the step.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax

from esper_jax.tezzeret.program import Compiled
from esper_jax.types import PyTree

_SECONDS = ("wall_seconds", "compile_seconds", "stall_seconds")
_COMPILATION = (
  "background_seconds",
  "blocking_seconds",
  "compiles",
  "disk_hits",
  "guesses",
  "guesses_used",
  "guess_seconds",
  "guess_seconds_used",
  "memory_hits",
  "overlapped_steps",
)
# Of the process, not of the state: a rollback does not take them back.
PASSED = (*_SECONDS, *_COMPILATION)
Kind = Literal["train", "evaluation", "ablation", "probe", "policy"]


def flops(lowered: jax.stages.Lowered) -> int:
  """Count the floating-point operations of one call of a lowered program.

  Args:
    lowered: a single-step program (no scan over steps), lowered for the CPU.

  Returns:
    Operations, an exact integer so that sums do not depend on their order;
    0 for a program without arithmetic.
  """
  analysis = lowered.cost_analysis() or {}
  # Older backends answer with one dictionary per device.
  first = analysis[0] if isinstance(analysis, list) else analysis
  return round(first.get("flops", 0.0))


def parameters(tree: PyTree) -> int:
  """Count the scalars of a tree of arrays."""
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


@dataclasses.dataclass(frozen=True)
class Ledger:
  """The bill of a run; every method returns a new one.

  It is stored in each checkpoint, so it accumulates over resumes.

  Attributes:
    steps: training steps that led to the present state.
    train: FLOPs of those steps, culled seeds included.
    evaluation: FLOPs of validation and test.
    ablation: FLOPs of contribution measurements.
    probe: FLOPs of probes of the slots.
    policy: FLOPs of the policy.
    wall_seconds: of the run, over all its processes.
    compile_seconds: spent compiling, in background or not.
    background_seconds: of these, for programs asked for ahead of need.
    blocking_seconds: for which the run waited on a compilation.
    stall_seconds: of these, once training was under way.
    compiles: programs compiled.
    disk_hits: of these, found in the compiler's cache on disk.
    guesses: of these, asked for before the decision that would need them.
    guesses_used: of these, needed; the others were wasted.
    guess_seconds: spent compiling guesses, part of background_seconds.
    guess_seconds_used: of these, for programs that were needed.
    memory_hits: times that a topology came back whose programs were at hand.
    overlapped_steps: training steps begun while a program was being compiled.
    redone_steps: steps that were undone by a rollback or lost in a crash.
    redone_flops: FLOPs of all kinds undone likewise; in no other figure.
  """

  steps: int = 0
  train: int = 0
  evaluation: int = 0
  ablation: int = 0
  probe: int = 0
  policy: int = 0
  wall_seconds: float = 0.0
  compile_seconds: float = 0.0
  background_seconds: float = 0.0
  blocking_seconds: float = 0.0
  stall_seconds: float = 0.0
  compiles: int = 0
  disk_hits: int = 0
  guesses: int = 0
  guesses_used: int = 0
  guess_seconds: float = 0.0
  guess_seconds_used: float = 0.0
  memory_hits: int = 0
  overlapped_steps: int = 0
  redone_steps: int = 0
  redone_flops: int = 0

  @property
  def train_flops(self) -> int:
    """FLOPs of the training steps alone."""
    return self.train

  @property
  def total_flops(self) -> int:
    """FLOPs of everything that led to the present state."""
    return (
      self.train + self.evaluation + self.ablation + self.probe + self.policy
    )

  @property
  def measurement_share(self) -> float:
    """FLOPs of ablations and probes per FLOP of training; 0 before any."""
    return (self.ablation + self.probe) / self.train if self.train else 0.0

  def charge(self, kind: Kind, flops_each: int, times: int = 1) -> "Ledger":
    """Add the FLOPs of `times` calls of one program.

    Args:
      kind: which account; "train" also counts `times` steps.
      flops_each: FLOPs of one call.
      times: calls; for a chunk of training steps, its length.
    """
    account = getattr(self, kind) + flops_each * times
    steps = self.steps + (times if kind == "train" else 0)
    return dataclasses.replace(self, **{kind: account, "steps": steps})

  def book(self, **amounts: float) -> "Ledger":
    """Add to the seconds and counts of these names."""
    added = {name: getattr(self, name) + n for name, n in amounts.items()}
    return dataclasses.replace(self, **added)

  def compiled(self, one: Compiled, *, stall: float) -> "Ledger":
    """Book a compilation.

    Args:
      one: the compilation.
      stall: seconds that training stood still for it.
    """
    return self.book(
      compile_seconds=one.seconds,
      background_seconds=one.seconds if one.background else 0.0,
      blocking_seconds=one.waited,
      stall_seconds=stall,
      compiles=1,
      disk_hits=one.on_disk,
      guesses=one.guessed,
      guess_seconds=one.seconds if one.guessed else 0.0,
    )

  def redo(self, steps: int, flops: int) -> "Ledger":
    """Add work that was done and lost, e.g. between a checkpoint and a crash.

    Args:
      steps: training steps.
      flops: FLOPs of all kinds.
    """
    return dataclasses.replace(
      self,
      redone_steps=self.redone_steps + steps,
      redone_flops=self.redone_flops + flops,
    )

  def rewind(self, target: "Ledger") -> "Ledger":
    """Go back to a checkpoint's ledger after a rollback.

    Steps and FLOPs become the target's; the difference is redone work.
    Seconds stay: they have passed.

    Args:
      target: the ledger in the checkpoint.
    """
    kept = (*PASSED, "redone_steps", "redone_flops")
    back = dataclasses.replace(
      target, **{name: getattr(self, name) for name in kept}
    )
    return back.redo(
      self.steps - target.steps, self.total_flops - target.total_flops
    )

  def summary(self) -> dict[str, Any]:
    """The ledger's part of result.json.

    What seconds and "compilation" hold depends on the machine's speed.
    """
    accounts = ("evaluation", "ablation", "probe", "policy")
    return {
      "train_flops": self.train_flops,
      "total_flops": self.total_flops,
      **{f"{name}_flops": getattr(self, name) for name in accounts},
      "measurement_share": self.measurement_share,
      **{name: getattr(self, name) for name in _SECONDS},
      "redone_steps": self.redone_steps,
      "redone_flops": self.redone_flops,
      "compilation": {name: getattr(self, name) for name in _COMPILATION},
    }

  def to_dict(self) -> dict[str, int | float]:
    """Every field, as JSON."""
    return dataclasses.asdict(self)

  @classmethod
  def from_dict(cls, record: Mapping[str, Any]) -> "Ledger":
    """The inverse of `to_dict`."""
    return cls(**record)
