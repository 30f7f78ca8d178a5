"""By what should the heuristic choose a blueprint and a place?

The heuristic as it is, and with other criteria in its place; everything else,
the plateau and the care of seeds, is the same. A criterion is a number for each
pair of a place and a blueprint, and the pair with the largest one grows:

  heuristic     by_score, of each place's best blueprint by_whole
  by_score      squared gradient norm of the factor that is zero at birth, per
                parameter of the seed
  by_whole      the same, not per parameter (GradMax)
  by_expansion  first-order gain over that of the parameters there (SENN)
  by_place      by_expansion, of each place's best blueprint by_score: the
                heuristic's rule before 26 November 2026
  by_first      nearest to the input, of each place's best blueprint by_whole
  periodic      no criterion: by the clock, in turn

Runs are paired by seed and read validation only; the differences are to the
heuristic's final validation accuracy.

  .venv/bin/python -m benchmarks.criteria --config=configs/digits.py
  .venv/bin/python -m benchmarks.criteria --worlds=512

--worlds plays in that many of Simic's environments instead, in which there are
several blueprints to choose from: what is compared is the return, and accuracy
on the report split. --config.SECTION.KEY=VALUE then changes one of their
settings.
"""

import importlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks._common import (
  changed,
  interval,
  load_config,
  make_parser,
  report,
  train,
)
from esper_jax.tamiyo import policy

MODULE = "benchmarks._criteria"  # registers those that the package lacks
POLICIES = (
  "heuristic",
  "by_score",
  "by_whole",
  "by_expansion",
  "by_place",
  "by_first",
  "periodic",
)


def in_runs(
  source: str, overrides: Sequence[str], seeds: Sequence[int]
) -> dict[str, list[dict[str, Any]]]:
  """Trains every policy with every seed; policy -> results."""
  results: dict[str, list[dict[str, Any]]] = {name: [] for name in POLICIES}
  shared = load_config(source, [*overrides, "--config.eval.test=False"])
  for seed in seeds:
    for name in POLICIES:
      config = changed(
        shared,
        seed=seed,
        tamiyo={"policy": name},
        urza={"modules": (MODULE,)},
      )
      result = train(config).result
      results[name].append(result)
      print(
        f"seed {seed} {name:12} {100 * result['val_accuracy']:.2f} %,"
        f" {result['germinated']} germinated, {result['fossilized']}"
        f" fossilized, {result['params_final']} parameters",
        flush=True,
      )
  return results


def in_worlds(
  count: int, seed: int, overrides: Sequence[str]
) -> dict[str, Any]:
  """Plays every policy in the same environments; policy -> `Played`."""
  from esper_jax.simic import assembly, evaluation, options, rollout

  importlib.import_module(MODULE)
  own = [text.removeprefix("--config.") for text in overrides]
  parts = assembly.build(options.read({}, own, assembly.DEFAULTS))
  settings = parts.others._asdict() | {"period_epochs": 4}
  names = ("never", *POLICIES)
  made = [policy.make(name, **settings) for name in names]
  players = [(p.init, rollout.deciding(p)) for p in made]

  @jax.jit
  def play(which, keys):
    return evaluation.play_one_of(parts.environment, players, which, keys)

  keys = jax.random.split(jax.random.key(seed), count)
  outcomes = {
    name: rollout.by_batch(
      lambda k, i=i: play(jnp.int32(i), k), keys, min(64, count)
    )
    for i, name in enumerate(names)
  }
  still = outcomes.pop("never")
  return {
    name: evaluation.measured(outcome, still, parts.prices)
    for name, outcome in outcomes.items()
  }


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
  """Runs the benchmark; returns the figures that --json writes."""
  parser = make_parser(__doc__, seeds=10)
  parser.set_defaults(first=100)
  parser.add_argument(
    "--config", default="configs/digits.py", help="config (%(default)s)"
  )
  parser.add_argument(
    "--worlds", type=int, default=0, help="environments of Simic instead"
  )
  options, overrides = parser.parse_known_args(argv)
  if options.worlds:
    figures = _of_worlds(in_worlds(options.worlds, options.first, overrides))
  else:
    seeds = range(options.first, options.first + options.seeds)
    figures = _of_runs(in_runs(options.config, overrides, seeds))
  figures |= {"worlds": options.worlds, "overrides": overrides}
  report("criteria", figures, options.json)
  return figures


def _of_runs(results: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
  keys = ("val_accuracy", "params_final", "total_flops", "fossilized")
  return _told(
    {
      name: {
        key: np.asarray([run[key] for run in runs], np.float64) for key in keys
      }
      for name, runs in results.items()
    },
    ("val_accuracy",),
  )


def _of_worlds(played: dict[str, Any]) -> dict[str, Any]:
  keys = ("earned", "accuracy", "parameters", "fossilized")
  return _told(
    {
      name: {key: getattr(what, key) for key in keys}
      for name, what in played.items()
    },
    ("earned", "accuracy"),
  )


def _told(
  values: dict[str, dict[str, np.ndarray]], judged: Sequence[str]
) -> dict[str, Any]:
  """Prints and returns means, and paired differences to the heuristic."""
  out: dict[str, Any] = {}
  for name, own in values.items():
    out[name] = {"mean": {key: float(x.mean()) for key, x in own.items()}}
    means = ", ".join(f"{k} {x:.5g}" for k, x in out[name]["mean"].items())
    print(f"{name:12} {means}")
    if name != "heuristic":
      for key in judged:
        less = interval((own[key] - values["heuristic"][key]).tolist())
        out[name][f"{key}_less_heuristic"] = less._asdict()
        print(f"{'':12} {key} less the heuristic's:", less.text(" points", 100))
  return {"policies": out}


if __name__ == "__main__":
  main(sys.argv[1:])
