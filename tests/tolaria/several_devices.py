"""Runs on four devices of one CPU, in a process of its own; tells in JSON.

JAX_NUM_CPU_DEVICES=4 python -m tests.tolaria.several_devices FOLDER
"""

import json
import shutil
import sys
from pathlib import Path

import jax
import numpy as np

from esper_jax.oona import jsonl
from esper_jax.tezzeret.lowering import placed
from esper_jax.tolaria import arrays, steps
from esper_jax.tolaria.trainer import Trainer
from tests.tolaria.conftest import small_config

GROW = {
  "tamiyo.policy": "schedule",
  "tamiyo.schedule": ((1, "slot1", "dense"), (2, "slot2", "dense")),
  "kasmina.training_gain_sigmas": -1e6,
  "train.epochs": 7,
  "train.log_every": 1,
}
SHARDED = {"mesh.data": 4, "mesh.parameters": "sharded", "mesh.shard_from": 64}
IMAGES = {
  "host.name": "resnet8",
  "host.width": 4,
  "kasmina.blueprints": ("norm",),
  "train.epochs": 1,
  "train.log_every": 1,
}


def train(path: Path, keep: Path | None = None, **changes):
  """Trains; on several devices, what is there after four epochs is kept."""

  def hook(trainer, metrics):
    several = trainer.parts.layout is not None
    if metrics.epoch == 4 and several and keep and not keep.exists():
      trainer._store.wait()  # files of a save under way come and go
      shutil.copytree(path, keep)

  trainer = Trainer(small_config(**changes), path, callbacks=[hook])
  assert trainer.train()["status"] == "completed"
  return trainer


def told(path: Path) -> dict:
  """What a run left."""
  lines = jsonl.read(path / "metrics.jsonl")
  events = jsonl.read(path / "events.jsonl")
  return {
    "losses": [x["train/loss"] for x in lines if "train/loss" in x],
    "val": [x["val/loss"] for x in lines if "val/loss" in x],
    "growth": [
      [e["type"], e["slot"], e["epoch"]]
      for e in events
      if e["type"] in ("germinated", "fossilized", "culled")
    ],
  }


def cut(trainer) -> list[str]:
  """Parameters that no device holds alone."""
  flat = jax.tree_util.tree_leaves_with_path(trainer.run.state)
  return [
    jax.tree_util.keystr(path)
    for path, leaf in flat
    if not leaf.sharding.is_fully_replicated
  ]


def devices(trainer) -> int:
  """On which what a step has changed lies; a boundary may add to it."""
  leaves = jax.tree.leaves(trainer.run.state.params)
  return max(len(leaf.sharding.device_set) for leaf in leaves)


def work(trainer) -> tuple[float, bool]:
  """FLOPs of a step on one device, and whether devices sum what they find."""
  parts, run = trainer.parts, trainer.run
  data = (parts.data.train_images, parts.data.train_labels)
  rows = np.zeros(trainer.config.data.batch_size, np.int32)
  place = parts.layout.place if parts.layout else None
  args = placed("train", (run.state, run.sums, *data, rows), place)
  step = steps.make_train_step(parts.host, parts.steps)
  compiled = jax.jit(lambda *a: step(*a)).lower(*args).compile()
  return compiled.cost_analysis()["flops"], "all-reduce" in compiled.as_text()


def main(folder: Path, everything: bool) -> dict:
  found = {}
  meshes = {"one": {}, "sharded": SHARDED}
  if everything:
    meshes |= {"four": {"mesh.data": 4}, "again": SHARDED}
  finals = {}
  for name, mesh in meshes.items():
    trainer = train(folder / name, keep=folder / "half", **GROW, **mesh)
    found[name] = told(folder / name) | {
      "cut": cut(trainer),
      "devices": devices(trainer),
      "work": work(trainer),
    }
    flat = arrays.flatten(trainer.run.arrays())
    finals[name] = {key: array.tobytes() for key, array in flat.items()}
  for count in (1, 2) if everything else (1,):
    path = folder / f"resumed{count}"
    shutil.copytree(folder / "half", path)
    train(path, **GROW, **{"mesh.data": count})
    found[path.name] = told(path)
  if everything:
    for name, mesh in (("images", {}), ("images of four", {"mesh.data": 4})):
      train(folder / name, **IMAGES, **mesh)
      found[name] = told(folder / name)
    found["same bits"] = finals["sharded"] == finals["again"]
  return found


if __name__ == "__main__":
  assert len(jax.devices()) == 4
  print(json.dumps(main(Path(sys.argv[1]), "--all" in sys.argv)))
