"""What the console prints, on a terminal and into a pipe."""

import io
import re
from pathlib import Path

import pytest

from esper_jax.nissa import console
from esper_jax.nissa.console import NORMAL, QUIET, VERBOSE, Console
from esper_jax.tolaria.display import TrainingMetrics
from tests.nissa.run_files import RESULT


class Terminal(io.StringIO):
  def isatty(self) -> bool:
    return True


def made(verbosity=NORMAL, *, stream=None, hint=""):
  stream = io.StringIO() if stream is None else stream
  shown = Console(verbosity, stream=stream, hint=hint)
  shown.begin(epoch=0, epochs=4, steps_per_epoch=10)
  return shown, stream


def metrics(**changes):
  figures = TrainingMetrics(
    epoch=2,
    step=20,
    train_loss=0.51,
    train_accuracy=0.8,
    val_loss=0.62,
    val_accuracy=0.75,
    seconds=1.26,
  )
  return figures._replace(**changes)


def event(kind, **fields):
  stamp = {"v": 1, "id": 3, "seq": 2, "time": 0.0, "epoch": 1, "step": 10}
  return {**stamp, "type": kind, **fields}


def result(**changes):
  return {**RESULT, **changes}


def tell_everything(shown):
  shown.part("data", "digits")
  shown.pace(20, 0.1)
  shown.steps(5, 1.0, 100.0)
  shown.epoch(metrics(), {})
  shown.event(event("germinated", slot="slot1"))
  shown.finish(result(), Path("runs/a"))
  shown.close()


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_quiet_prints_nothing(stream):
  shown, stream = made(QUIET, stream=stream)
  tell_everything(shown)
  assert stream.getvalue() == ""


def test_a_pipe_gets_whole_lines_only():
  shown, stream = made()
  tell_everything(shown)
  assert "\r" not in stream.getvalue()
  assert "\x1b" not in stream.getvalue()
  assert "images/s" not in stream.getvalue()


def test_where_nobody_reads_any_more_the_run_goes_on_unseen():
  class Closed(Terminal):
    writes = 0

    def write(self, text):
      del text
      self.writes += 1
      raise BrokenPipeError

  class Unread(Closed):
    def isatty(self):
      return False

  shown, stream = made(stream=Closed())
  shown.steps(3, 0.5, 100.0)
  shown.part("data", "digits")
  shown.steps(4, 0.5, 100.0)
  shown.close()
  assert stream.writes
  shown, stream = made(stream=Unread())
  shown.part("data", "digits")
  shown.part("oona", "events")
  assert stream.writes == 1


def test_where_kernels_run_is_a_detail():
  for verbosity, text in (
    (NORMAL, ""),
    (VERBOSE, "urza     no GPU: the reference code runs\n"),
  ):
    shown, stream = made(verbosity)
    shown.part("urza", "no GPU: the reference code runs")
    assert stream.getvalue() == text


def test_standard_output_is_the_default(capsys):
  Console().part("data", "digits")
  assert capsys.readouterr().out == "data     digits\n"


def test_a_terminal_gets_a_panel_below_the_lines():
  shown, stream = made(stream=Terminal())
  shown.steps(15, 0.5, 1234.4)
  shown.epoch(metrics(), {"slot1": {"stage": "DORMANT", "alpha": 0.0}})
  shown.close()
  text = stream.getvalue()
  assert "epoch 2/4" in text and "1,234 images/s" in text
  assert "epoch   2/4  train loss 0.5100" in text
  shown.part("oona", "events")
  assert stream.getvalue().endswith("oona     events\n")


def test_pace_says_how_long_it_will_take():
  shown, stream = made(hint="try :cpu")
  shown.pace(20, 0.5)
  assert stream.getvalue() == (
    "pace     5 s an epoch, about 10 s to go; growth and compiling come on"
    " top\n"
  )


def test_a_long_run_gets_the_hint_and_only_where_there_is_one():
  for hint, lines in (("try :cpu", 2), ("", 1)):
    shown, stream = made(hint=hint)
    shown.pace(20, 200.0)
    found = stream.getvalue().splitlines()
    assert len(found) == lines
    assert "about 1 h 6 min to go" in found[0]
    assert found[1:] == ["hint     try :cpu"][: lines - 1]


def test_an_epoch_lists_the_slots_that_are_not_dormant():
  shown, stream = made()
  slots = {
    "slot1": {"stage": "DORMANT", "alpha": 0.0},
    "slot2": {"stage": "BLENDING", "alpha": 0.3333},
    "slot3": {"stage": "HOLDING", "alpha": 1.0},
  }
  shown.epoch(metrics(), slots)
  shown.epoch(metrics(epoch=12), {})
  assert stream.getvalue().splitlines() == [
    "epoch   2/4  train loss 0.5100 acc 0.8000  val loss 0.6200 acc 0.7500"
    "  1.3 s  [slot2 blending 0.33, slot3 holding]",
    "epoch  12/4  train loss 0.5100 acc 0.8000  val loss 0.6200 acc 0.7500"
    "  1.3 s",
  ]


@pytest.mark.parametrize(
  "kind",
  [
    "resumed",
    "decision",
    "germinated",
    "fossilized",
    "culled",
    "fault",
    "rolled_back",
    "quarantined",
    "interrupted",
  ],
)
def test_what_matters_is_shown_to_everyone(kind):
  shown, stream = made()
  shown.event(event(kind))
  words = f"    {kind.replace('_', ' ')}"
  assert re.fullmatch(f"{words}( after epoch 1, step 10)?\n", stream.getvalue())


@pytest.mark.parametrize("kind", ["checkpoint", "compile", "run_started"])
def test_the_rest_is_shown_on_request(kind):
  for verbosity, lines in ((NORMAL, 0), (VERBOSE, 1)):
    shown, stream = made(verbosity)
    shown.event(event(kind))
    assert len(stream.getvalue().splitlines()) == lines


@pytest.mark.parametrize(
  ("record", "text"),
  [
    (event("resumed"), "resumed after epoch 1, step 10"),
    (
      event("stage_changed", slot="slot1", was="TRAINING", now="BLENDING"),
      "slot1: training -> blending",
    ),
    (
      event(
        "decision",
        slot="slot1",
        action="germinate",
        blueprint="",
        reason="a plateau",
      ),
      "slot1: decision (action germinate) -- a plateau",
    ),
    (
      event(
        "fossilized",
        slot="slot1",
        contribution=0.012345,
        contribution_se=None,
        parameters=10,
        reason="",
      ),
      "slot1: fossilized (contribution 0.0123, parameters 10)",
    ),
  ],
)
def test_an_event_as_a_line(record, text):
  assert console.describe(record) == text


@pytest.mark.parametrize(
  ("seconds", "text"),
  [
    (0.0412, "0.041 s"),
    (5.04, "5 s"),
    (9.96, "10 s"),
    (59.4, "59 s"),
    (59.6, "1 min 0 s"),
    (185, "3 min 5 s"),
    (3599.6, "1 h 0 min"),
    (7800, "2 h 10 min"),
  ],
)
def test_durations_as_people_say_them(seconds, text):
  assert console.duration(seconds) == text


def test_the_end_names_every_file_and_how_it_ended():
  shown, stream = made()
  shown.finish(result(), Path("runs/a"))
  lines = stream.getvalue().splitlines()
  assert lines[0] == ""
  assert any(
    line.startswith("validation accuracy at the end") for line in lines
  )
  assert lines[-5:] == [
    "completed",
    "  runs/a/result.json",
    "  runs/a/events.jsonl",
    "  runs/a/metrics.jsonl",
    "  runs/a/checkpoints",
  ]


def test_an_interrupted_run_says_how_to_go_on():
  shown, stream = made()
  shown.finish(result(status="interrupted"), Path("runs/a"))
  assert stream.getvalue().endswith(
    "\nwith the workdir runs/a the same command resumes the run\n"
  )
  stream = io.StringIO()
  shown = Console(stream=stream, command="python main.py --workdir=runs/a")
  shown.finish(result(status="interrupted"), Path("runs/a"))
  assert stream.getvalue().endswith(
    "\nto resume the run: python main.py --workdir=runs/a\n"
  )
  shown, stream = made()
  shown.finish(result(status="failed", reason="the loss is nan"), Path("a"))
  assert "\nfailed: the loss is nan\n" in stream.getvalue()
