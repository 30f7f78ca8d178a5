"""Copies of a run's events beside the run: see also tests/services."""

import json

import pytest

from esper_jax.oona import jsonl
from esper_jax.tolaria.display import Silent
from esper_jax.types import InputError


class Recorder(Silent):
  def __init__(self):
    self.said = []

  def part(self, name, text):
    if name == "oona":
      self.said.append(text)


def copying(server, **changes):
  return {"oona.redis_url": server.url, "train.epochs": 1, **changes}


def copies(server):
  """Run and event of every entry, in order."""
  entries = server.streams.get(b"esper", [])
  flat = [fields for _, fields in entries]
  return [(run.decode(), json.loads(line)) for _, run, _, _, _, line in flat]


def config_of(run):
  return json.loads((run.path / "config.json").read_text())


def test_a_run_copies_its_events_and_hides_the_password(watch, small_redis):
  small_redis.password = "secret"
  url = small_redis.url.replace("//", "//:secret@")
  display = Recorder()
  run = watch(
    name="a", display=display, **copying(small_redis, **{"oona.redis_url": url})
  )
  run.train()
  document = config_of(run)
  assert document["run"].startswith("a-")
  events = jsonl.read(run.path / "events.jsonl")
  assert copies(small_redis) == [(document["run"], e) for e in events]
  hidden = url.replace("secret", "***")
  assert document["config"]["oona"]["redis_url"] == hidden
  (said,) = display.said
  assert said.endswith(
    f", and to Redis at {hidden}, stream esper, as {document['run']}"
  )
  for path in run.path.rglob("*"):
    assert path.is_dir() or b"secret" not in path.read_bytes()


def test_a_run_goes_on_without_a_server_and_sends_all_later(watch, small_redis):
  small_redis.stop()
  late = copying(small_redis, **{"oona.redis_flush_seconds": 0.1})
  display = Recorder()
  run = watch(name="a", display=display, **late).train()
  assert run.result["status"] == "completed"
  events = jsonl.read(run.path / "events.jsonl")
  first, last = display.said
  assert "; it fails now (" in first and "refused" in first
  assert last.startswith("events that have not reached Redis at ")
  assert f": {len(events)} (" in last
  assert "refused" in last and "the same command sends them" in last
  run.trainer.shutdown()
  assert len(display.said) == 2
  small_redis.start()
  again = watch(name="a", display=display, **copying(small_redis)).train()
  assert [event for _, event in copies(small_redis)] == events
  assert again.result == run.result and len(display.said) == 3


def test_a_server_that_stays_mute_is_told_at_the_end(watch, small_redis):
  display = Recorder()
  late = copying(small_redis, **{"oona.redis_flush_seconds": 0.1})
  run = watch(display=display, **late)
  small_redis.mute = True
  run.train()
  assert "(it did not answer in time)" in display.said[-1]


def test_a_resumed_run_keeps_its_name(watch, small_redis):
  changes = copying(small_redis, **{"train.epochs": 2})
  run = watch(name="a", callbacks=[lambda t, m: t.stop()], **changes).train()
  name = config_of(run)["run"]
  watch(name="a", **changes).train()
  assert config_of(run)["run"] == name
  events = jsonl.read(run.path / "events.jsonl")
  assert "resumed" in [e["type"] for e in events]
  assert copies(small_redis) == [(name, e) for e in events]
  other = watch(name="b/a", **copying(small_redis))
  other.trainer.shutdown()
  assert config_of(other)["run"] != name


def test_a_server_that_refuses_stops_the_run_before_it_begins(
  watch, small_redis
):
  small_redis.password = "secret"
  with pytest.raises(InputError, match="Redis at .* refuses"):
    watch(name="a", **copying(small_redis))
  small_redis.password = ""
  watch(name="a", **copying(small_redis)).train()  # the directory is free
