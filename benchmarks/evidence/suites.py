"""What a suite fixes before its first run: host, data, arms, claims.

One file a suite in `suite_configs`; it is not edited once the suite has been
run. Rows carry the hash of what it says, so that rows of an edited suite are
not mixed with older ones.
"""

import hashlib
import importlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.evidence.claims import Claim
from esper_jax.types import InputError

ROOT = Path(__file__).parents[2]
_PACKAGE = "benchmarks.evidence.suite_configs"


class StaticHost(NamedTuple):
  """The hand-designed family of arm A4: plain, without slots.

  Attributes:
    name: of the host.
    widths: to choose from, rising: the first with at least the grown run's
      parameters is taken, else the last.
    shape: of an image, (height, width, channels).
    classes: number of logits.
  """

  name: str
  widths: tuple[int, ...]
  shape: tuple[int, int, int]
  classes: int


class Suite(NamedTuple):
  """A suite; see the files of `suite_configs`.

  Attributes:
    name: as in --suite.
    says: what it is for, a sentence.
    source: config file, with a profile after a colon, from the root.
    flags: of the form --config.section.key=value, shared by all arms.
    seeds: how many the claims are made for.
    arms: letters, see `arms.ARMS`; those that run without --arms.
    periodic: key -> value, of arm B1.
    static: of arm A4; None where that arm is not run.
    look_ahead: epochs that arm B5 trains each candidate; 0 where it is not
      run.
    targets: validation accuracies, 0 to 1, to count the cost of.
    claims: made before the first run.
  """

  name: str
  says: str
  source: str
  flags: tuple[str, ...]
  seeds: int
  arms: tuple[str, ...]
  periodic: dict[str, Any]
  static: StaticHost | None
  look_ahead: int
  targets: tuple[float, ...]
  claims: tuple[Claim, ...]

  def sha256(self) -> str:
    """Of everything above but the words for people, in hex."""
    fields = self._asdict()
    del fields["says"]
    fields["claims"] = [claim[:-1] for claim in self.claims]
    text = json.dumps(fields, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def names() -> tuple[str, ...]:
  """The names of all suites."""
  folder = Path(__file__).parent / "suite_configs"
  found = [p.stem.replace("_", "-") for p in folder.glob("[a-z]*.py")]
  return tuple(sorted(found))


def load(name: str) -> Suite:
  """Loads a suite.

  Raises:
    InputError: there is no such suite.
  """
  if name not in names():
    raise InputError(
      f"--suite={name}: no such suite; valid are {', '.join(names())}"
    )
  module = importlib.import_module(f"{_PACKAGE}.{name.replace('-', '_')}")
  return module.SUITE
