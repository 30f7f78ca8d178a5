"""What the end of a run changed after its last epoch's line."""

import io

import pytest

from esper_jax.nissa import console
from esper_jax.nissa.report import ending, record, single, story
from tests.nissa.run_files import Page, event, line, planted, write

STARTED = event("run_started", 0, policy="schedule")
OVER = event("run_finished", 4, status="completed")
GONE = {"was": "HOLDING", "reason": "the run ended"}


def culled(epoch, slot):
  worth = {"contribution": None, "contribution_se": None}
  return event("culled", epoch, slot=slot, **GONE, **worth)


def ended(folder, *happened, **changes):
  lines = [line(n, {"a": "DORMANT"}) for n in range(1, 5)]
  result = {
    "status": "completed",
    "epochs": 4,
    "val_accuracy": 0.8611,
    "metrics": {"validation": {"top2": 0.9}, "test": {"top2": 0.8}},
    **changes,
  }
  events = [STARTED, *happened, OVER]
  write(folder, lines=lines, events=events, result=result, train__epochs=4)
  return record.read(folder)


ONE = (planted(1, "a"), culled(4, "a"))
SAID = (
  "after the last epoch 1 seed that was not permanent was culled: validation"
  " accuracy was 87.50 % before that, and is 86.11 % now"
)


def test_what_the_end_culls_is_said(tmp_path):
  run = ended(tmp_path, *ONE)
  assert ending.sentence(run) == SAID
  told = story.tell(run).replace("\u00a0", " ")
  assert f". A{SAID[1:]}." in told
  page = single.make(run)
  assert "before seeds enter or leave; parameters are counted" in page
  assert Page(page).texts["dt"].count("top2") == 1
  stream = io.StringIO()
  console.Console(stream=stream).finish(
    {**run.result, "germinated": 1}, tmp_path
  )
  assert f"completed\n{SAID}\n" in stream.getvalue()


def test_several_are_counted(tmp_path):
  run = ended(tmp_path, *ONE, planted(4, "b"), culled(4, "b"))
  assert "epoch 2 seeds that were not permanent were cu" in ending.sentence(run)


@pytest.mark.parametrize(
  ("happened", "changes"),
  [
    ((), {}),
    ((planted(1, "a"), culled(3, "a")), {}),
    (ONE, {"status": "interrupted"}),
    (ONE, {"val_accuracy": None}),
  ],
)
def test_nothing_is_said_of_other_runs(tmp_path, happened, changes):
  assert ending.sentence(ended(tmp_path, *happened, **changes)) == ""
