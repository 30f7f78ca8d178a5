"""What TensorBoard is given, read back from the event files."""

import io
import struct
import sys

import numpy as np
import pytest
from PIL import Image

from esper_jax.nissa.tensorboard import TensorBoard, timeline
from esper_jax.tolaria.display import TrainingMetrics
from esper_jax.types import InputError, Stage

tensorboardX = pytest.importorskip("tensorboardX")
CONFIG = {"seed": 3, "host.name": "mlp", "host.slots": ("slot1",)}
RESULT = {
  "val_loss": 0.5,
  "val_accuracy": 0.875,
  "test_accuracy": None,
  "params_final": 970,
}


def read(folder):
  """Every event of the files, in order; checksums of records must hold."""
  from tensorboardX.crc32c import crc32c
  from tensorboardX.proto.event_pb2 import Event

  def masked(data):
    crc = crc32c(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF

  for path in sorted(folder.glob("events.out.*")):
    data = io.BytesIO(path.read_bytes())
    while head := data.read(8):
      (length,) = struct.unpack("<Q", head)
      assert struct.unpack("<I", data.read(4))[0] == masked(head)
      body = data.read(length)
      assert struct.unpack("<I", data.read(4))[0] == masked(body)
      yield Event.FromString(body)


def values(folder):
  """Tag -> [(step, value)]."""
  found = {}
  for event in read(folder):
    for value in event.summary.value:
      found.setdefault(value.tag, []).append((event.step, value))
  return found


def slots(stage, alpha=0.0, contribution=None):
  row = {"stage": stage, "alpha": alpha, "contribution": contribution}
  return {"slot1": row, "slot2": {**row, "stage": "DORMANT"}}


def metrics(epoch, val_loss=1.5):
  return TrainingMetrics(epoch, 10 * epoch, 2.0, 0.25, val_loss, 0.5, 1.25)


@pytest.fixture
def written(tmp_path):
  """A run of three epochs."""
  board = TensorBoard(tmp_path, CONFIG)
  board.part("data", "digits")
  board.begin(epoch=0, epochs=3, steps_per_epoch=10)
  board.pace(5, 0.125)
  board.steps(8, 2.25, 320.0)
  board.epoch(metrics(1), slots("DORMANT"))
  board.event(
    {"type": "germinated", "slot": "slot1", "step": 10, "key": "dense"}
  )
  board.event({"type": "checkpoint", "step": 10})
  board.epoch(metrics(2), slots("BLENDING", 0.5, 0.0625))
  board.histograms(
    {
      "slot1/dense": np.linspace(-1, 1, 7, dtype=np.float32),
      "slot1/bad": np.array([np.nan], np.float32),
    },
    20,
  )
  board.epoch(metrics(3), slots("BLENDING", 1.0))
  board.finish(RESULT, tmp_path)
  board.close()
  return tmp_path


def test_scalars(written):
  found = values(written)

  def scalars(tag):
    return [(step, value.simple_value) for step, value in found[tag]]

  assert scalars("train/loss") == [(8, 2.25)]
  assert scalars("time/step") == [(5, 0.125)]
  assert scalars("time/images_per_second") == [(8, 320.0)]
  assert scalars("val/loss") == [(10, 1.5), (20, 1.5), (30, 1.5)]
  assert scalars("slots/slot1/alpha") == [(10, 0.0), (20, 0.5), (30, 1.0)]
  assert scalars("slots/slot1/contribution") == [(20, 0.0625)]
  assert scalars("result/val_accuracy") == [(30, 0.875)]
  assert "result/test_accuracy" not in found


def test_parts_are_told(written):
  ((step, value),) = values(written)["parts/data/text_summary"]
  assert (step, value.tensor.string_val) == (0, [b"digits"])


def test_growth_is_told_in_words_and_nothing_else(written):
  found = values(written)
  ((step, value),) = found["germinated/text_summary"]
  assert step == 10
  assert value.tensor.string_val == [b"slot1: germinated (key dense)"]
  assert "checkpoint/text_summary" not in found


def test_weights_are_histograms(written):
  found = values(written)
  ((step, value),) = found["seeds/slot1/dense"]
  assert (step, value.histo.num) == (20, 7)
  assert (value.histo.min, value.histo.max) == (-1.0, 1.0)
  assert "seeds/slot1/bad" not in found


def test_the_timeline_is_drawn_when_it_changes_and_at_the_end(written):
  images = values(written)["slots/timeline"]
  assert [step for step, _ in images] == [20, 30]
  drawn = Image.open(io.BytesIO(images[-1][1].image.encoded_image_string))
  pixels = np.asarray(drawn)
  assert pixels.shape == (16, 24, 3)
  colours = {tuple(pixels[0, x]) for x in (0, 8, 16)}
  assert len(colours) == 2 and (pixels[0, 8] == pixels[0, 16]).all()
  assert (pixels[8:] == pixels[8, 0]).all()  # slot2 sleeps throughout


def test_hyperparameters_are_those_of_the_config(written):
  from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

  found = values(written)
  ((_, value),) = found["_hparams_/session_start_info"]
  content = value.metadata.plugin_data.content
  told = HParamsPluginData.FromString(content).session_start_info.hparams
  assert told["seed"].number_value == 3
  assert told["host.name"].string_value == "mlp"
  assert told["host.slots"].string_value == "('slot1',)"


def test_a_resumed_run_takes_back_what_it_does_again(tmp_path):
  board = TensorBoard(tmp_path, CONFIG)
  board.begin(epoch=4, epochs=9, steps_per_epoch=10)
  board.close()
  starts = [e for e in read(tmp_path) if e.HasField("session_log")]
  assert [event.step for event in starts] == [40]


def test_a_host_without_slots_has_no_timeline(tmp_path):
  board = TensorBoard(tmp_path, {})
  board.close()  # nothing has begun
  board.begin(epoch=0, epochs=9, steps_per_epoch=10)
  board.epoch(metrics(1), {})
  board.finish(RESULT, tmp_path)
  board.close()
  assert "slots/timeline" not in values(tmp_path)


def test_every_stage_has_a_colour_of_its_own():
  drawn = timeline([[stage] for stage in Stage])
  assert len({tuple(drawn[0, x]) for x in range(0, drawn.shape[1], 8)}) == 8


def test_without_the_extra(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "tensorboardX", None)
  with pytest.raises(InputError, match=r"install -e '\.\[tensorboard\]'"):
    TensorBoard(tmp_path, {})
