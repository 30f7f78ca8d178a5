"""A run that was killed cannot say so: its last sign of life grows old."""

import signal
import time

from esper_jax.doctor import command_line, run
from esper_jax.doctor.report import Level
from esper_jax.nissa.following import KILLED, follow
from esper_jax.tolaria import status


def test_a_killed_run_is_stale(lab, capsys):
  process = lab.start("killed", "static", "train.epochs=400")
  path = process.left.path

  log = path / "metrics.jsonl"
  assert process.wait_until(
    lambda: log.exists() and b"val/" in log.read_bytes()
  )
  assert command_line.main([str(path)]) == 0
  out = capsys.readouterr().out
  assert "ok    run: running, epoch " in out
  assert "ok    tolaria: ready after " in out
  process.send(signal.SIGKILL)
  assert process.end()[0] == -signal.SIGKILL
  (line, *_) = run.check(path)
  assert line.level == Level.OK  # as far as anyone can tell so soon
  later = time.time() + status.STALE + 1
  (line, *others) = run.check(path, now=later)
  assert line.level == Level.FAIL
  assert f"process {process.popen.pid} was killed, or stands st" in line.found
  assert {other.level for other in others} == {Level.OK}
  shown = []
  assert follow(path, shown.append, clock=lambda: later) == KILLED
  assert "epoch   1/400  train loss " in "".join(shown)
  assert "no sign of life since " in "".join(shown)
