"""Two processes on one machine train one network; they meet on loopback."""

import re
import signal
import socket
import time

import numpy as np
import pytest

MESH = "mesh.data=0"


@pytest.fixture
def pair(lab):
  """Starts the two processes of a run; the first one leads."""

  def start(name, profile="grow", *overrides, second=(), more=()):
    with socket.socket() as free:
      free.bind(("127.0.0.1", 0))
      address = f"127.0.0.1:{free.getsockname()[1]}"
    began = []
    for number, own in enumerate(((), second)):
      began.append(
        lab.start(
          name,
          profile,
          *overrides,
          MESH,
          *own,
          flags=("--distributed", *more),
          env={
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": "2",
            "JAX_PROCESS_ID": str(number),
          },
        )
      )
    return began

  return start


def both_end(processes):
  """Exit codes, standard outputs and errors of both."""
  return zip(*(process.end() for process in processes), strict=True)


def losses(run):
  lines = run.metrics()
  return [line["train/loss"] for line in lines if "train/loss" in line]


def growth(run):
  return [
    (e["type"], e["slot"], e["epoch"])
    for e in run.events("germinated", "stage_changed", "fossilized", "culled")
  ]


def test_two_processes_do_what_one_does(pair, whole):
  """Given its decisions; the network is the same throughout."""
  log = f"--replay={whole.path / 'events.jsonl'}"
  schedule = "tamiyo.schedule=()"
  processes = pair("two", "grow", schedule, more=(log,))
  codes, outputs, errors = both_end(processes)
  assert codes == (0, 0), errors
  two = processes[0].left
  assert len(losses(two)) > 40
  np.testing.assert_allclose(losses(two), losses(whole), rtol=1e-4)
  assert growth(two) == growth(whole)
  assert "2 devices of 2 processes share each batch" in outputs[0]
  said = [x for x in outputs[1].splitlines() if not x.startswith("[Gloo]")]
  assert said == []  # the first one speaks


@pytest.mark.full
def test_they_decide_alike_and_stop_together(pair, lab, whole):
  processes = pair("run", "grow", "train.log_every=1")
  assert processes[0].wait_until(lambda: processes[0].left.size() > 8_000)
  processes[1].send(signal.SIGTERM)
  codes, _, errors = both_end(processes)
  assert codes == (0, 0), errors
  half = processes[0].left
  assert half.result["status"] == "interrupted"
  codes, _, errors = both_end(pair("run", "grow", "train.log_every=1"))
  assert codes == (0, 0), errors
  assert growth(half) == growth(whole)
  assert half.result["status"] == "completed"
  again = lab.run("run", "grow", "train.log_every=1")
  assert again.result == half.result


@pytest.mark.full
def test_a_checkpoint_of_two_processes_is_resumed_by_one(pair, lab, whole):
  processes = pair("run")
  begun = processes[0].left.path / "checkpoints"
  assert processes[0].wait_until(lambda: len(list(begun.glob("*-step-*"))) > 1)
  processes[0].send(signal.SIGINT)
  codes, _, errors = both_end(processes)
  assert codes == (0, 0), errors
  done = lab.run("run", "grow")
  np.testing.assert_allclose(losses(done), losses(whole), rtol=1e-4)
  assert growth(done) == growth(whole)


@pytest.mark.full
def test_processes_that_do_not_belong_together_end_together(pair, lab):
  codes, _, errors = both_end(pair("a", "static", second=("seed=5",)))
  assert codes == (2, 2)
  for error in errors:
    assert "not with the same config and data" in error
  busy = lab.start("b", "static", "train.epochs=500")
  assert busy.wait_until(busy.begun)
  codes, _, errors = both_end(pair("b", "static", "train.epochs=500"))
  busy.send(signal.SIGTERM)
  busy.end()
  assert codes == (2, 2)
  for error in errors:
    assert re.search(r"^error: .*(in use|is used)", error, re.M)


@pytest.mark.full
def test_a_dead_process_ends_the_run_and_the_command_resumes(pair, lab, whole):
  processes = pair("run", "grow", "train.log_every=1")
  assert processes[0].wait_until(lambda: processes[0].left.size() > 8_000)
  processes[1].send(signal.SIGKILL)
  start = time.monotonic()
  codes, _, _ = both_end(processes)
  assert codes[0] != 0 and time.monotonic() - start < 200
  codes, _, errors = both_end(pair("run", "grow", "train.log_every=1"))
  assert codes == (0, 0), errors
  assert growth(processes[0].left) == growth(whole)
