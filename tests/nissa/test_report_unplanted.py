"""Why nothing was planted: the line says what the logs say, and what to do."""

import io
import re

import hypothesis
import hypothesis.strategies as st
import jax.numpy as jnp
import pytest

from esper_jax.nissa import console
from esper_jax.nissa.report import record, story, unplanted
from esper_jax.tamiyo import observation as obs
from tests.nissa.run_files import event, line, write

STARTED = event("run_started", 0, policy="heuristic")
OVER = event("run_finished", 10, status="completed")
DORMANT = {"slot1_1": "DORMANT"}


def ended(
  folder, losses, *, policy="heuristic", slots=DORMANT, happened=(), **keys
):
  """A completed run in which nothing was planted."""
  values = {
    "host__name": "resnet8",
    "tamiyo__policy": policy,
    "tamiyo__warmup_epochs": 0,
    "tamiyo__plateau_epochs": 2,
    "tamiyo__plateau_delta": 0.01,
    "train__epochs": len(losses),
    **keys,
  }
  lines = [
    line(n, slots, **{"val/loss": loss}) for n, loss in enumerate(losses, 1)
  ]
  result = {
    "status": "completed",
    "epochs": len(losses),
    "policy_used": policy,
    "germinated": 0,
    "slots": {},
  }
  events = [STARTED, *happened, OVER]
  write(folder, lines=lines, events=events, result=result, **values)
  return unplanted.sentence(record.read(folder))


FALLING = [0.9**n for n in range(16)]


def test_no_plateau(tmp_path):
  told = ended(tmp_path, FALLING)
  assert told == (
    "nothing was planted: over 2 epochs the validation loss always fell by 19 %"
    " or more, and a plateau is below 1 %; raise --config.tamiyo.plateau_delta"
    " to 0.2 or more, or grow by the clock, --config.tamiyo.policy=periodic"
  )
  page = story.tell(record.read(tmp_path)).replace("\u00a0", " ")
  assert f"planted no seed: {told.partition(': ')[2]}." in page


def test_a_model_of_ones_own_is_told_of_its_own_arguments(tmp_path):
  told = ended(tmp_path, FALLING, host__name="given")
  assert "raise config['tamiyo.plateau_delta'] to 0.2 or more" in told
  assert told.endswith("policy='periodic'")


@hypothesis.given(
  st.lists(st.floats(0.7, 0.97), min_size=12, max_size=12),
  st.integers(1, 3),
)
@hypothesis.settings(max_examples=20, deadline=None)
def test_the_value_that_is_named_would_have_been_a_plateau(
  tmp_path_factory, ratios, span
):
  losses = [1.0]
  for ratio in ratios:
    losses.append(losses[-1] * ratio)
  folder = tmp_path_factory.mktemp("run")
  told = ended(folder, losses, tamiyo__plateau_epochs=span)
  named = re.search(r"plateau_delta to ([\d.]+) or more", told)
  assert named
  falls = []
  for epoch in range(span + 1, len(losses)):
    seen = losses[max(0, epoch - obs.HISTORY) : epoch]
    history = jnp.asarray([0.0] * (obs.HISTORY - len(seen)) + seen)
    known = jnp.arange(obs.HISTORY) >= obs.HISTORY - len(seen)
    observed = obs.unknown(rows=1, blueprints=1).replace(
      val_loss=history.astype(jnp.float32), history_known=known
    )
    fall, is_known = obs.improvement(observed, span)
    assert is_known
    falls.append(float(fall))
  assert any(fall < float(named[1]) for fall in falls)
  assert not any(fall < 0.01 for fall in falls)


@pytest.mark.parametrize(
  ("keys", "says"),
  [
    (
      {"tamiyo__warmup_epochs": 14},
      "no seed may be planted before 14 epochs passed, and the last by epoch"
      " 10 of 16; lower --config.tamiyo.warmup_epochs, or raise"
      " --config.train.epochs to 20 or more",
    ),
    (
      {"kasmina__blend_epochs": 30},
      "a seed's life takes more than the run's 16 epochs; raise"
      " --config.train.epochs to 35 or more",
    ),
    ({"tamiyo__max_growths": 0}, "--config.tamiyo.max_growths is 0"),
    (
      {"slots": {}},
      "the host has no slot; give --config.host.slots=all, or some names",
    ),
    (
      {"slots": {}, "host__name": "given"},
      "the model has no slot; put x = esper_jax.Slot(name='middle')(x,"
      " train=train) where it may grow",
    ),
    (
      {"happened": [event("growth_cancelled", 4, slot="a", reason="memory")]},
      "what was decided was given up: memory",
    ),
    (
      {"policy": "periodic", "tamiyo__period_epochs": 40},
      "no period of 40 epochs ended between epoch 1 and epoch 10, the last by"
      " which a seed may be planted; lower --config.tamiyo.period_epochs, or"
      " raise --config.train.epochs",
    ),
    (
      {"policy": "random", "tamiyo__probability": 0.01},
      "10 times nothing was drawn with probability 0.01; raise"
      " --config.tamiyo.probability, or give another --config.seed",
    ),
    (
      {"policy": "learned"},
      "10 times the learned policy decided not to grow; grow on a plateau,"
      " --config.tamiyo.policy=heuristic, or by the clock,"
      " --config.tamiyo.policy=periodic",
    ),
    (
      {
        "policy": "schedule",
        "happened": [
          event("decision", 9, slot="a", action="wait", reason="too late")
        ],
      },
      "too late",
    ),
    (
      {
        "policy": "schedule",
        "tamiyo__schedule": [[13, "slot1_1", "conv3x3"]],
        "happened": [
          event("decision", 9, slot="a", action="wait", reason="too late")
        ],
      },
      "too late; a seed asked for after epoch 13 needs a run of 19 epochs:"
      " raise --config.train.epochs, or change --config.tamiyo.schedule",
    ),
    (
      {"tamiyo__plateau_epochs": 7, "kasmina__blend_epochs": 6},
      "the run was too short to compare the validation loss over 7 epochs;"
      " raise --config.train.epochs",
    ),
  ],
)
def test_other_causes(tmp_path, keys, says):
  assert ended(tmp_path, FALLING, **keys) == f"nothing was planted: {says}"


def test_a_plateau_without_a_score(tmp_path):
  told = ended(tmp_path, [1.0] * 16)
  assert told == (
    "nothing was planted: at the plateau after epoch 3 no place had a"
    " germination score above zero"
  )


@pytest.mark.parametrize("policy", ["given", "periodic", "schedule"])
def test_where_the_logs_do_not_tell(tmp_path, policy):
  assert ended(tmp_path, FALLING, policy=policy) == "nothing was planted"
  told = story.tell(record.read(tmp_path))
  assert f"Policy {policy} planted no seed. " in told


@pytest.mark.parametrize("policy", ["never", "replay"])
def test_where_nothing_was_to_be_planted(tmp_path, policy):
  assert ended(tmp_path, FALLING, policy=policy) == ""


def test_the_console_says_it_once_the_run_is_over(tmp_path):
  told = ended(tmp_path, FALLING)
  result = record.read(tmp_path).result
  stream = io.StringIO()
  console.Console(stream=stream).finish(result, tmp_path)
  assert f"completed\n{told}\n" in stream.getvalue()
  stream = io.StringIO()
  console.Console(stream=stream).finish({**result, "germinated": 1}, tmp_path)
  assert "nothing was planted" not in stream.getvalue()
