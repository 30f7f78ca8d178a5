"""From a training run to a policy file, and from a policy file to a verdict."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from esper_jax.simic import assembly, evaluation, options, training
from esper_jax.tamiyo import policy_file
from esper_jax.tolaria import workdir
from esper_jax.tolaria.stopping import Stopping
from esper_jax.tolaria.store import environment as versions
from esper_jax.types import InputError
from esper_jax.urza import kept
from esper_jax.urza.artefact import Damaged
from esper_jax.urza.registry import open_registry

POLICY = "policy.safetensors"  # in the run directory


def train(
  settings: Mapping[str, Any],
  path: str | os.PathLike[str],
  *,
  check_same: Callable[..., None],
  publish: str | None = None,
  registry: str = "",
  say: Callable[[str], None] = print,
) -> dict[str, Any]:
  """Trains a policy in a run directory, or goes on with it.

  Args:
    settings: section -> record, see `assembly.DEFAULTS`.
    path: the run directory; the policy is written there.
    check_same: (old config, new config, workdir=) that raises InputError where
      they may not share a run.
    publish: name under which Urza keeps the policy; None = it does not.
    registry: layer of Urza to write to; "" = the user's.
    say: takes the lines of progress.

  Returns:
    What result.json holds: status ("completed" or "interrupted"), iterations
    and seconds; once there was a test, held_out_return and policy, its path.

  Raises:
    InputError: settings do not fit, or the directory holds another run.
    RunFailedError: something cannot be written.
  """
  if publish is not None:
    kept.check_name("policies", publish)  # not after an hour of training
  stopping = Stopping()
  with workdir.acquire(path) as work, stopping.signals():
    matter = assembly.kept(settings)
    sections = {name: dict(r._asdict()) for name, r in matter.items()}
    work.claim(
      {
        "config": sections,
        "config_hash": options.digest(matter),
        **versions(),
      },
      check=lambda old, new: check_same(old, new, workdir=work.path),
    )
    parts = assembly.build(settings)
    trained = training.train(
      parts.actor,
      parts.environment,
      assembly.phases(parts, settings),
      parts.prices,
      settings["training"],
      work,
      say=say,
      stop=lambda: stopping.requested,
    )
    result: dict[str, Any] = {
      "status": "completed" if trained.finished else "interrupted",
      "iterations": trained.iteration,
      "seconds": trained.seconds or _seconds_before(work.result),
    }
    if math.isfinite(trained.score):  # else nothing has been tested yet
      provenance = _provenance(settings, trained)
      policy_file.save(
        work.path / POLICY,
        trained.params,
        sizes=settings["network"],
        provenance=provenance,
      )
      result["held_out_return"] = trained.score
      result["policy"] = str(work.path / POLICY)
      if publish is not None and trained.finished:
        blob = (work.path / POLICY).read_bytes()
        open_registry(registry).keep("policies", publish, provenance, blob)
        result["published"] = publish
    workdir.write_json(work.result, result)
  return result


def _seconds_before(path: Path) -> float:
  """Of a run that was complete already, what its result says."""
  return (workdir.read_json(path) or {}).get("seconds", 0.0)


def _provenance(
  settings: Mapping[str, Any], trained: training.Trained
) -> dict[str, Any]:
  """Where a policy comes from, as its file tells."""
  own: training.Settings = settings["training"]
  return {
    "config": options.flat(assembly.kept(settings)),
    "config_hash": options.digest(assembly.kept(settings)),
    "environments": own.environments,
    "seed": own.seed,
    "iterations": trained.iteration,
    "held_out": {"environments": own.held_out, "return": trained.score},
    **versions(),
  }


def find(policy: str, *, registry: str = "") -> policy_file.PolicyFile:
  """Reads a policy: a file, or where there is none what Urza keeps so named.

  Args:
    policy: path, or name.
    registry: layer of Urza to look in; "" = the user's.

  Raises:
    InputError: there is neither, or it is damaged.
  """
  if os.path.exists(policy) or not kept.NAME.fullmatch(policy):
    return policy_file.load(policy)
  try:
    blob = open_registry(registry).kept("policies", policy).blob
  except KeyError:
    raise InputError(
      f"--policy={policy}: no such file, and Urza keeps no policy so named"
    ) from None
  except Damaged as damage:
    raise InputError(f"--policy={policy}: {damage}") from damage
  return policy_file.from_bytes(blob or b"", f"the policy '{policy}' in Urza")


def evaluate(
  found: policy_file.PolicyFile,
  settings: Mapping[str, Any] | None,
  overrides: Sequence[str],
  *,
  count: int,
  seed: int,
) -> dict[str, evaluation.Played]:
  """Compares a policy with the others on environments it has not met.

  Args:
    found: see `find`.
    settings: of the environments; None = those it was trained with.
    overrides: of the latter, see `options.read`.
    count: environments.
    seed: which; another than that of the training.

  Raises:
    InputError: the policy says too little about the environments, or was
      trained with the seed.
  """
  provenance = found.provenance
  if settings is None:
    nested: dict[str, dict[str, Any]] = {}
    for key, value in dict(provenance.get("config", {})).items():
      section, _, name = key.partition(".")
      nested.setdefault(section, {})[name] = value
    settings = options.read(nested, overrides, assembly.DEFAULTS)
  settings = {**settings, "network": found.sizes}
  if seed == provenance.get("seed"):
    raise InputError(
      f"--seed={seed}: the policy was trained with this seed; give another"
    )
  parts = assembly.build(settings)
  return evaluation.compare(
    parts.environment,
    parts.actor,
    found.params,
    parts.prices,
    parts.others,
    jax.random.key(seed),
    count,
  )
