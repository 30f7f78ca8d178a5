"""A GPT that grows on a text of the user, from the command line."""

import json

import pytest

import main
from esper_jax import load_grown
from esper_jax.export import writing
from esper_jax.oona import jsonl

CHANGES = {
  "host.width": "16",
  "data.context": "16",
  "data.validation_fraction": "0.2",
  "data.batch_size": "16",
  "train.epochs": "7",
  "train.max_steps": "0",
  "data.train_limit": "0",
  "kasmina.blueprints": "causal_attention",
  "kasmina.blend_epochs": "1",
  "kasmina.min_training_epochs": "1",
  "kasmina.training_gain_sigmas": "-1e6",
  "kasmina.gain_sigmas": "0.0",
  "tamiyo.policy": "schedule",
  "tamiyo.schedule": "((1,'slot1','causal_attention'),)",
  "oona.fsync": "False",
}


@pytest.fixture
def command(tmp_path):
  source = tmp_path / "mine.txt"
  words = "one two three four five six seven eight nine ten".split()
  source.write_text(
    " ".join(words[n * n % 7 + n % 3] for n in range(800)) + "\n"
  )
  flags = [f"--config.{key}={value}" for key, value in CHANGES.items()]
  return [
    "main.py",
    "--config=configs/char_gpt.py:smoke",
    f"--config.data.source=text:{source}",
    f"--workdir={tmp_path / 'run'}",
    *flags,
  ]


def test_the_learned_policy_is_asked_about_a_text(command, tmp_path):
  command = [x for x in command if "tamiyo" not in x]
  asked = ("tamiyo.policy=learned", "tamiyo.warmup_epochs=1")
  assert main.main([*command, *(f"--config.{x}" for x in asked)]) == 0
  result = json.loads((tmp_path / "run" / "result.json").read_text())
  assert result["policy_used"] == "learned"


def test_attention_grows_stays_and_is_exported(command, tmp_path, capsys):
  assert main.main(command) == 0
  out, err = capsys.readouterr()
  assert err == ""
  assert "mine.txt" in out and "distinct" in out and "fossilized" in out
  result = json.loads((tmp_path / "run" / "result.json").read_text())
  assert result["status"] == "completed"
  assert (result["germinated"], result["fossilized"]) == (1, 1)
  assert result["params_final"] - result["params_initial"] == (
    4 * 16 * 16 + 2 * 16
  )
  losses = [
    line["val/loss"]
    for line in jsonl.read(tmp_path / "run" / "metrics.jsonl")
    if "val/loss" in line
  ]
  assert losses[-1] < losses[0]
  events = list(jsonl.read(tmp_path / "run" / "events.jsonl"))
  fossil = next(e for e in events if e["type"] == "fossilized")
  assert fossil["slot"] == "slot1" and fossil["contribution"] > 0
  text = (tmp_path / "mine.txt").rename(tmp_path / "moved.txt")
  done = writing.export_run(
    tmp_path / "run", tmp_path / "out", data_dir=str(text)
  )
  assert [note.split(":")[0] for note in done.notes] == ["no model.py"]
  reads = load_grown(tmp_path / "out").topology["input"]
  assert reads["vocabulary"] == "".join(sorted(set(text.read_text())))
  assert reads["context"] == 16


def test_a_missing_text_is_one_line(command, tmp_path, capsys):
  (tmp_path / "mine.txt").unlink()
  assert main.main(command) == 2
  out, err = capsys.readouterr()
  assert out == "" and err.count("\n") == 1
  assert "there is no file" in err and "mine.txt" in err
  assert not (tmp_path / "run").exists()
