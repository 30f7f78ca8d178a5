"""Why nothing was planted in a run, as far as its logs tell."""

import math
from collections.abc import Callable

from esper_jax.kasmina.rules import (
  earliest_fossil,
  last_planting,
  of_config,
)
from esper_jax.knobs import GIVEN
from esper_jax.nissa.report.record import Run
from esper_jax.types import counted

_UNASKED = ("never", "replay")  # policies that decide on no growth
_SLACK = 1e-4  # of a digit's unit; the policy judges in float32


def sentence(run: Run) -> str:
  """Says that nothing was planted and, where the logs tell, why.

  Returns:
    A line; "" where something was planted or nothing was to be, and as long as
    the run is not completed.
  """
  asked = run.config["tamiyo.policy"] not in _UNASKED
  if run.status != "completed" or run.growth.seeds or not asked:
    return ""
  why = _reason(run)
  return "nothing was planted" + (f": {why}" if why else "")


def _reason(run: Run) -> str:
  """A clause: why, and what to do; "" where the logs do not tell."""
  if not run.slots:
    return _no_slot(run)
  if not run.config["tamiyo.max_growths"]:
    return f"{_key(run, 'tamiyo.max_growths')} is 0"
  given_up = [e for e in run.events if e["type"] == "growth_cancelled"]
  if given_up:
    return f"what was decided was given up: {given_up[-1].get('reason')}"
  policy = (run.result or {}).get("policy_used") or run.config["tamiyo.policy"]
  if policy == "schedule":
    return _schedule(run)
  fits = _boundaries(run)
  warm = [e for e in fits if e >= run.config["tamiyo.warmup_epochs"]]
  if not warm:
    return _too_short(run, fits)
  known: dict[str, Callable[[Run, list[int]], str]] = {
    "heuristic": _heuristic,
    "periodic": _periodic,
    "random": _random,
    "learned": _learned,
  }
  return known[policy](run, warm) if policy in known else ""


def _boundaries(run: Run) -> list[int]:
  """Epochs after which the policy was asked and a whole life still fitted."""
  rules = of_config(run.config, run.epochs)
  every = rules.adaptation_frequency
  return list(range(every, last_planting(rules) + 1, every))


def _no_slot(run: Run) -> str:
  if run.config["host.name"] != GIVEN:
    return "the host has no slot; give --config.host.slots=all, or some names"
  return (
    "the model has no slot; put x = esper_jax.Slot(name='middle')(x,"
    " train=train) where it may grow"
  )


def _too_short(run: Run, fits: list[int]) -> str:
  first = run.config["tamiyo.warmup_epochs"]
  needed = _needed(run, first)
  longer = f"raise {_key(run, 'train.epochs')} to {needed} or more"
  if not fits:
    return (
      "a seed's life takes more than the run's"
      f" {counted(run.epochs, 'epoch')}; {longer}"
    )
  return (
    f"no seed may be planted before {counted(first, 'epoch')} passed, and the"
    f" last by epoch {fits[-1]} of {run.epochs}; lower"
    f" {_key(run, 'tamiyo.warmup_epochs')}, or {longer}"
  )


def _heuristic(run: Run, warm: list[int]) -> str:
  span, limit = (run.config[f"tamiyo.plateau_{n}"] for n in ("epochs", "delta"))
  over = f"over {counted(span, 'epoch')}"
  falls = _falls(run, span)
  judged = {epoch: falls[epoch] for epoch in warm if epoch in falls}
  if not judged:
    return (
      f"the run was too short to compare the validation loss {over}; raise"
      f" {_key(run, 'train.epochs')}"
    )
  least = min(judged.values())
  if least < limit:
    epoch = min(e for e, fall in judged.items() if fall < limit)
    return (
      f"at the plateau after epoch {epoch} no place had a germination score"
      " above zero"
    )
  return (
    f"{over} the validation loss always fell by {_down(100 * least)} % or more,"
    f" and a plateau is below {100 * limit:g} %; raise"
    f" {_key(run, 'tamiyo.plateau_delta')} to {_up(least)} or more, or grow by"
    f" the clock, {_policy(run, 'periodic')}"
  )


def _falls(run: Run, span: int) -> dict[int, float]:
  """Epoch -> relative fall of the validation loss over the last `span`."""
  losses = {
    line["epoch"]: loss
    for line, loss in zip(run.lines, run.series("val/loss"), strict=True)
    if loss is not None
  }
  return {
    epoch: (losses[epoch - span] - loss) / max(abs(losses[epoch - span]), 1e-12)
    for epoch, loss in losses.items()
    if epoch - span in losses
  }


def _periodic(run: Run, warm: list[int]) -> str:
  period = run.config["tamiyo.period_epochs"]
  every = run.config["tamiyo.adaptation_frequency"]
  if any(e // period > (e - every) // period for e in warm):
    return ""
  return (
    f"no period of {counted(period, 'epoch')} ended between epoch {warm[0]} and"
    f" epoch {warm[-1]}, the last by which a seed may be planted; lower"
    f" {_key(run, 'tamiyo.period_epochs')}, or raise"
    f" {_key(run, 'train.epochs')}"
  )


def _random(run: Run, warm: list[int]) -> str:
  return (
    f"{counted(len(warm), 'time')} nothing was drawn with probability"
    f" {run.config['tamiyo.probability']:g}; raise"
    f" {_key(run, 'tamiyo.probability')}, or give another {_key(run, 'seed')}"
  )


def _learned(run: Run, warm: list[int]) -> str:
  return (
    f"{counted(len(warm), 'time')} the learned policy decided not to grow; grow"
    f" on a plateau, {_policy(run, 'heuristic')}, or by the clock,"
    f" {_policy(run, 'periodic')}"
  )


def _schedule(run: Run) -> str:
  asked = [e for e in run.events if e["type"] == "decision"]
  if not asked:
    return ""
  why = str(asked[-1].get("reason"))
  first = min((entry[0] for entry in run.config["tamiyo.schedule"]), default=0)
  needed = _needed(run, first)
  if needed <= run.epochs:
    return why
  return (
    f"{why}; a seed asked for after epoch {first} needs a run of {needed}"
    f" epochs: raise {_key(run, 'train.epochs')}, or change"
    f" {_key(run, 'tamiyo.schedule')}"
  )


def _needed(run: Run, first: int) -> int:
  """Epochs of a run in which a seed of that epoch, or the next, can stay."""
  rules = of_config(run.config, run.epochs)
  every = rules.adaptation_frequency
  return earliest_fossil(max(every, -(-first // every) * every), rules)


def _key(run: Run, key: str) -> str:
  """A key of the config as who started the run writes it."""
  own = run.config["host.name"] == GIVEN
  return f"config['{key}']" if own else f"--config.{key}"


def _policy(run: Run, name: str) -> str:
  """A policy as who started the run asks for it."""
  if run.config["host.name"] == GIVEN:
    return f"policy='{name}'"
  return f"--config.tamiyo.policy={name}"


def _down(value: float) -> str:
  """Two significant digits, rounded towards zero."""
  unit = _unit(value)
  return f"{math.floor(value / unit + _SLACK) * unit:.6g}"


def _up(value: float) -> str:
  """Two significant digits, above the value."""
  unit = _unit(value)
  return f"{(math.floor(value / unit + _SLACK) + 1) * unit:.6g}"


def _unit(value: float) -> float:
  return 10.0 ** (math.floor(math.log10(value)) - 1) if value > 0 else 1e-6
