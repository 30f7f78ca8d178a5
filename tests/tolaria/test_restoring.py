"""A run directory gives back the network that the run had."""

import json
import shutil

import jax
import numpy as np
import pytest

from esper_jax import InputError
from esper_jax.tolaria import restoring

GROWING = {
  "tamiyo.policy": "schedule",
  "tamiyo.schedule": ((1, "slot1", "dense"),),
  "train.ema_decay": 0.5,
}


@pytest.fixture(scope="module")
def finished(watch_shared):
  """A run that grew, and is complete."""
  return watch_shared(**GROWING).train()


def edited(run, path, change):
  """A copy of a run directory with another config.json."""
  shutil.copytree(run.path, path)
  document = json.loads((path / "config.json").read_text())
  change(document)
  (path / "config.json").write_text(json.dumps(document))
  return path


def same(a, b):
  leaves = [jax.tree.leaves(tree) for tree in (a, b)]
  return jax.tree.structure(a) == jax.tree.structure(b) and all(
    np.array_equal(x, y)
    for x, y in zip(*leaves, strict=True)
    if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
  )


def test_a_finished_run(finished):
  before = sorted(finished.path.rglob("*"))
  restored = restoring.restore(finished.path)
  state = finished.trainer.run.state
  assert state.seeds and state.average
  assert same(restored.state, state)
  assert restored.status == "completed"
  assert restored.epoch == 5
  assert restored.config_hash == finished.result["config_hash"]
  assert sorted(finished.path.rglob("*")) == before


def test_neither_policy_nor_replay_is_asked(finished, tmp_path):
  def change(document):
    document["config"]["tamiyo"] |= {
      "policy": "replay",
      "replay": str(tmp_path / "gone.jsonl"),
      "schedule": [],
    }

  path = edited(finished, tmp_path / "copy", change)
  assert same(restoring.restore(path).state, finished.trainer.run.state)


@pytest.mark.parametrize(
  ("device", "dtype"), [("cpu:cpu", "float32"), ("gpu:any", "bfloat16")]
)
def test_automatic_precision_is_that_of_the_run(
  device, dtype, finished, tmp_path
):
  def change(document):
    document["device"] = device
    document["config"]["train"]["precision"] = "auto"

  path = edited(finished, tmp_path / "copy", change)
  restored = restoring.restore(path)
  assert restored.host["dtype"] == dtype
  assert restored.parts.example.dtype == dtype


def test_a_damaged_checkpoint_is_passed_over_and_told(finished, tmp_path):
  path = edited(finished, tmp_path / "copy", lambda document: None)
  (path / "result.json").unlink()
  newest, before = sorted((path / "checkpoints").iterdir())[:-3:-1]
  (newest / "checkpoint.json").write_text("{}")
  restored = restoring.restore(path)
  assert restored.checkpoint.path == before
  assert [d.checkpoint.path for d in restored.damaged] == [newest]
  assert restored.status == "unfinished"
  for folder in (path / "checkpoints").iterdir():
    (folder / "checkpoint.json").write_text("{}")
  with pytest.raises(InputError, match="has no whole checkpoint"):
    restoring.restore(path)
  shutil.rmtree(path / "checkpoints")
  with pytest.raises(InputError, match="has no checkpoint"):
    restoring.restore(path)


def test_other_data_is_refused(finished, tmp_path):
  def change(document):
    document["data_sha256"] = "another"

  path = edited(finished, tmp_path / "copy", change)
  with pytest.raises(InputError, match="its SHA-256 is another there"):
    restoring.restore(path)
  with pytest.raises(InputError, match="nowhere"):
    restoring.restore(finished.path, data_dir=str(tmp_path / "nowhere"))


def test_another_host_than_the_checkpoint_has(finished, tmp_path):
  def change(document):
    document["config"]["host"]["slots"] = ["slot2"]

  path = edited(finished, tmp_path / "copy", change)
  with pytest.raises(InputError, match="holds a seed in slot 'slot1', which"):
    restoring.restore(path)


def test_what_is_no_run_directory(tmp_path):
  with pytest.raises(InputError, match="is not a run directory"):
    restoring.restore(tmp_path)
  (tmp_path / "config.json").write_text("{}")
  with pytest.raises(InputError, match="is not a run directory"):
    restoring.restore(tmp_path)
  assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json"]
