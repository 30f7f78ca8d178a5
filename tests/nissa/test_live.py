"""The panel at the foot of a terminal, as text."""

import io

import pytest
from rich.console import Console

from esper_jax.nissa.live import Panel
from esper_jax.tolaria.display import TrainingMetrics

METRICS = TrainingMetrics(2, 20, 0.51, 0.8, 0.62, 0.75, 1.26)


class Terminal(io.StringIO):
  def isatty(self) -> bool:
    return True


class Clock:
  def __init__(self):
    self.now = 100.0

  def __call__(self):
    return self.now


def row(stage="DORMANT", alpha=0.0, contribution=None):
  return {"stage": stage, "alpha": alpha, "contribution": contribution}


@pytest.fixture
def clock():
  return Clock()


@pytest.fixture
def panel(clock):
  made = Panel(Terminal(), clock=clock)
  made.begin(epoch=0, epochs=4, steps_per_epoch=10)
  yield made
  made.close()


def seen(panel, height=40):
  """What stands on a terminal 110 columns wide, line by line."""
  panel._console.height = height
  out = io.StringIO()
  Console(file=out, width=110, height=height).print(panel.render())
  return [line.rstrip() for line in out.getvalue().splitlines()]


def test_progress_and_the_time_to_go(panel, clock):
  panel.steps(5, 0.9, 50.0)
  assert "to go" not in seen(panel)[0]  # of one call nothing follows
  clock.now += 2.0
  panel.steps(15, 0.5, 1234.4)
  (line,) = seen(panel)
  assert line.startswith("epoch 2/4")
  assert "step 15/40 1,234 images/s loss 0.5000" in line
  assert line.endswith("about 5 s to go")
  assert line.count("━") == 12  # half of the epoch


def test_the_last_step_of_an_epoch_is_its_own(panel):
  panel.steps(20, 0.25, 10.0)
  assert seen(panel)[0].startswith("epoch 2/4")


def test_slots_that_are_awake_have_a_row(panel):
  panel.steps(20, 0.5, 10.0)
  panel.epoch(
    METRICS,
    {
      "slot1": row(),
      "slot2": row("BLENDING", 0.5, 0.02),
      "slot3": row("HOLDING", 1.0, -0.01),
      "slot4": row("TRAINING"),
    },
  )
  _, figures, *table = seen(panel)
  assert figures == (
    "epoch 2: train loss 0.5100 acc 0.8000, val loss 0.6200 acc 0.7500"
  )
  rows = {line.split()[0]: line for line in table if line.startswith("slot")}
  assert set(rows) == {"slot", "slot2", "slot3", "slot4"}
  assert "blending" in rows["slot2"] and "0.50" in rows["slot2"]
  assert rows["slot2"].count("█") == 10 and "+0.0200" in rows["slot2"]
  assert rows["slot3"].count("▒") == 5 and "-0.0100" in rows["slot3"]
  assert not {"█", "▒", "nats"} & set(rows["slot4"])
  assert table[-1] == "1 dormant"


def test_a_low_terminal_shows_fewer_rows(panel):
  slots = {f"slot{n}": row("FOSSILIZED", 1.0, 0.0) for n in range(9)}
  panel.epoch(METRICS, slots)
  lines = seen(panel, height=10)
  assert sum("fossilized" in line for line in lines) == 2
  assert lines[-1] == "7 more awake"


def test_a_panel_of_sleeping_slots_has_no_table(panel):
  panel.epoch(METRICS, {"slot1": row()})
  assert len(seen(panel)) == 2


def test_lines_stay_above_it_and_it_leaves_nothing_behind():
  stream = Terminal()
  panel = Panel(stream)
  panel.begin(epoch=0, epochs=4, steps_per_epoch=10)
  panel.steps(3, 0.5, 10.0)
  panel.line("a [line] that stays, " + 30 * "long ")
  panel.close()
  panel.close()
  stays = "a [line] that stays, " + 30 * "long "
  assert stays in stream.getvalue()
  hidden, shown = "\x1b[?25l", "\x1b[?25h"  # the cursor
  assert stream.getvalue().count(hidden) == stream.getvalue().count(shown) == 1


def test_the_next_run_begins_afresh(panel, clock):
  panel.steps(5, 0.9, 50.0)
  panel.epoch(METRICS, {"slot1": row("TRAINING")})
  panel.begin(epoch=0, epochs=2, steps_per_epoch=10)
  panel.steps(1, 0.9, 50.0)
  assert len(seen(panel)) == 1


def test_a_terminal_that_is_gone_ends_nothing():
  class Gone(Terminal):
    def write(self, text):
      raise BrokenPipeError

    def flush(self):
      raise BrokenPipeError

  panel = Panel(Gone())
  panel.begin(epoch=0, epochs=4, steps_per_epoch=10)
  panel.steps(3, 0.5, 10.0)
  panel.line("text")
  panel.close()
