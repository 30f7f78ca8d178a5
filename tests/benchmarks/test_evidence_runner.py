"""Two tiny arms are run, taken up again, and reported on."""

import json
import re
import shutil

import pytest

from benchmarks.evidence import (
  __main__,
  claims,
  document,
  figures,
  report,
  rows,
  runner,
  suites,
)
from benchmarks.evidence import arms as arms_lib
from esper_jax.oona import jsonl
from esper_jax.tolaria import checkpoints
from esper_jax.tolaria.trainer import Trainer
from esper_jax.types import InputError

TINY = (
  "--config.host.name=mlp",
  "--config.host.width=4",
  "--config.host.inner_widths=()",
  "--config.kasmina.blueprints=dense",
  "--config.data.train_limit=64",
  "--config.train.epochs=2",
  "--config.train.log_every=1",
  "--config.tezzeret.threads=0",
)


def make_command(root, *options):
  return ["run", "--suite=digits", f"--dir={root}", *options, *TINY]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """The folder of A0 and A1 at one seed, and how the command ended."""
  root = tmp_path_factory.mktemp("evidence")
  command = make_command(root, "--seeds=1", "--jobs=0", "--arms=A0,A1,P")
  code = __main__.main(command)
  return root, code


def make_job(root):
  return runner.Job(suites.load("digits"), root, TINY)


def test_growth_switched_off_changes_nothing(finished):
  root, _ = finished
  found = rows.by_arm(rows.read_all(root))
  off, without = found["A0"][0], found["A1"][0]
  assert off["state_sha256"] == without["state_sha256"]
  assert off["result"]["train_flops"] == without["result"]["train_flops"]
  same = [p["val_loss"] for p in off["curve"]]
  assert same == [p["val_loss"] for p in without["curve"]]
  claim = suites.load("digits").claims[0]
  assert claims.judge(claim, found).outcome == "supported"


def test_a_row_holds_what_a_report_needs_and_no_path(finished):
  root, _ = finished
  path = root / "A0" / "0" / "row.json"
  row = json.loads(path.read_text())
  assert row["flags"]["host.name"] == "mlp" and "seed" not in row["flags"]
  assert row["config"]["tamiyo.policy"] == "never"
  assert row["data_sha256"] == row["result"]["data_sha256"]
  assert [p["epoch"] for p in row["curve"]] == [1, 2]
  assert row["curve"][0]["seconds"] < row["curve"][1]["seconds"]
  assert row["extra"]["peak_process_bytes"] > 1e6
  assert row["environment"]["cores"] >= 1
  assert str(root) not in path.read_text()
  assert not (path.parent / "checkpoints").exists()


def test_a_failure_is_isolated_and_shown(finished, capsys):
  root, code = finished
  job, item = make_job(root), runner.Item("P", 0)
  assert code == 1 and job.row(item) is None
  assert "--policy=FILE" in job.failure(item)["reason"]
  assert runner.state(job, item) == "failed"
  assert __main__.main(make_command(root, "--only=P/0")) == 2
  assert "--policy=FILE" in capsys.readouterr().err


def test_what_the_heuristic_decided_is_no_row_of_a_policy(tmp_path, capsys):
  lost = tmp_path / "lost.safetensors"
  root = tmp_path / "runs"
  command = make_command(root, "--only=P/0", f"--policy={lost}")
  assert __main__.main(command) == 2
  said = capsys.readouterr().err
  assert "P/0: not the policy 'learned' decided but 'heuristic'" in said
  job, item = make_job(root), runner.Item("P", 0)
  assert runner.state(job, item) == "failed" and job.row(item) is None


def test_rows_of_a_policy_are_of_one_and_were_decided_by_it(finished):
  root, _ = finished
  (row,) = [r for r in rows.read_all(root) if r["arm"] == "A0"]
  config = {**row["config"], "tamiyo.policy": "learned"}

  def learned(used, sha256, seed):
    result = row["result"] | {"policy_used": used, "policy_sha256": sha256}
    more = {"arm": "P", "seed": seed, "config": config, "result": result}
    return row | more

  rows.require_comparable(
    [learned("learned", "a", 0), learned("learned", "a", 1)]
  )
  with pytest.raises(InputError, match="different policies"):
    rows.require_comparable(
      [learned("learned", "a", 0), learned("learned", "b", 1)]
    )
  with pytest.raises(InputError, match="P/1: not the policy 'learned'"):
    rows.require_comparable(
      [row, learned("learned, heuristic from epoch 2", "a", 1)]
    )


def test_what_is_finished_is_not_run_again(finished, capsys):
  root, _ = finished
  path = root / "A0" / "0" / "row.json"
  before = path.stat().st_mtime_ns
  command = make_command(root, "--seeds=1", "--jobs=0", "--arms=A0,A1")
  assert __main__.main(command) == 0
  assert "2 of 2 were done before" in capsys.readouterr().out
  assert __main__.main(make_command(root, "--only=A0/0")) == 0
  assert path.stat().st_mtime_ns == before


def test_an_interrupted_run_goes_on(finished, tmp_path):
  root, _ = finished
  job, item = make_job(tmp_path), runner.Item("A1", 0)
  given = arms_lib.Given(job.suite, 0, runner.base_config(job, 0, TINY), {}, {})
  config = arms_lib.configure(arms_lib.ARMS["A1"], given)

  def stop(trainer, metrics):
    trainer.stop()

  ended = Trainer(config, job.folder(item), callbacks=[stop]).train()
  assert ended["status"] == "interrupted"
  row = runner.run_one(job, item)
  events = jsonl.read(job.folder(item) / "events.jsonl")
  assert "resumed" in [event["type"] for event in events]
  whole = make_job(root).row(item)
  assert row["state_sha256"] == whole["state_sha256"]
  assert runner.run_one(job, item) == row


def test_the_work_is_listed(finished, capsys):
  root, _ = finished
  command = make_command(root, "--seeds=1", "--list", "--arms=A0,A1',A3")
  assert __main__.main(command) == 0
  assert capsys.readouterr().out.splitlines() == [
    "A0/0\tdone",
    "B4/0\tready",
    "A1/0\tdone",
    "A1p/0\twaits for B4/0",
    "A2/0\twaits for B4/0",
    "A3/0\twaits for B4/0, A2/0",
  ]


def test_an_item_that_needs_another_says_so(tmp_path, capsys):
  assert __main__.main(make_command(tmp_path, "--only=A2/0")) == 2
  assert "A2/0 needs B4/0, which is not finished" in capsys.readouterr().err
  lines = []
  job = make_job(tmp_path)
  work = [runner.Item("B2", 0)]
  assert runner.run_all(job, work, jobs=1, tell=lines.append) == work
  assert lines[-1] == "B2/0: not run, waits for B4/0"


def test_a_child_runs_one_item(tmp_path):
  """With a flag that is wrong, so that it ends at once."""
  job = make_job(tmp_path)._replace(flags=("--config.host.wdth=3",))
  item = runner.Item("A1", 0)
  with pytest.raises(InputError, match=r"host\.width"):
    runner.check_root(job, [item])
  assert runner.arguments(job, item) == [
    "run",
    "--suite=digits",
    f"--dir={tmp_path}",
    "--only=A1/0",
    "--config.host.wdth=3",
  ]


def test_bad_input_is_told(tmp_path, finished, capsys):
  root, _ = finished
  for command, words in (
    (["run", "--suite=digit"], "no such suite"),
    (make_command(tmp_path, "--only=A9/0"), "give ARM/SEED"),
    (make_command(tmp_path, "--sedes=3"), "sedes: no such flag"),
    (make_command(tmp_path, "--arms=A0,X"), "no such arm: X"),
    (["report", str(tmp_path / "none")], "no such file or folder"),
    (["report", str(root), "--config.seed=1"], "report takes no"),
  ):
    assert __main__.main(command) == 2
    assert words in capsys.readouterr().err


def test_other_flags_need_another_folder(finished, capsys):
  root, _ = finished
  command = make_command(root, "--seeds=1", "--arms=A0")
  assert __main__.main([*command, "--config.train.epochs=3"]) == 2
  assert "choose another --dir" in capsys.readouterr().err
  where = "--config.data.cache_dir=elsewhere"  # changes no result
  assert __main__.main([*command, where, "--jobs=0"]) == 0


def test_the_report_of_real_rows(finished, tmp_path):
  root, _ = finished
  assert __main__.main(["report", str(root), f"--out={tmp_path}"]) == 0
  text = (tmp_path / "report.md").read_text()
  assert "**off switch**" in text and "equal bit for bit, n = 1" in text
  assert "no verdict**: arm missing (B4)" in text
  assert "P/0 failed: InputError: arm P needs --policy=FILE" in text
  assert "B4: not run; `.venv/bin/python -m benchmarks.evidence run" in text
  again = tmp_path / "again"
  command = ["report", str(tmp_path / rows.ROWS), f"--out={again}"]
  assert __main__.main(command) == 0
  assert (again / rows.ROWS).read_bytes() == (tmp_path / rows.ROWS).read_bytes()


def make_rows(finished, accuracies):
  """Rows of several arms and seeds, from a real one."""
  root, _ = finished
  row = json.loads((root / "A0" / "0" / "row.json").read_text())
  out = []
  for arm, values in accuracies.items():
    for seed, value in enumerate(values):
      new = json.loads(json.dumps(row)) | {"arm": arm, "seed": seed}
      new["result"]["test_accuracy"] = value
      new["state_sha256"] = f"{arm}{seed}"
      if arm == "B4":
        new["result"]["germinated"] = 1
        slot = {"epoch": 1, "slot": "slot1"}
        new["timeline"] = [
          slot | {"type": "germinated", "parameters": 4},
          slot | {"type": "culled", "contribution": 0.5, "epoch": 2},
        ]
        new["parity"] = [{"epoch": 2, "slot": "slot1", "parity": 0.25}]
      out.append(new)
  return out


def test_the_report_of_all_kinds_of_rows(finished):
  found = make_rows(
    finished,
    {
      "A1": [0.9, 0.91, 0.92],
      "A2": [0.85, 0.85, 0.86],
      "B2": [0.8, 0.95, 0.9],
      "B4": [0.9, 0.91, 0.92],
    },
  )
  found[0]["environment"]["cores"] = 99
  found[0]["extra"]["peak_device_bytes"] = 5_000_000
  blocks = report.make(found)
  text = document.to_markdown(blocks)
  assert "| B4 - A1 | 3 | identical |" in text
  assert "| B4 - A2 | 3 | +5.67 points [+4.23, +7.10] | 0.58 | 0.25 | 0.5" in (
    text
  )
  assert "| 0.5 | - | 0 |" in text  # no pair ended in the same state
  assert "come from different machines" in text
  assert "3 of the 10 seeds" in text
  assert re.search(r"\*\*place\*\*.*\*\*undecided\*\*: \+2\.67 points", text)
  assert re.search(r"\| B4 \| 1\.0 \| .* \| 0\.25 \| \+0\.5000 \|", text)
  page = document.to_html(blocks, title="t")
  assert page.count("<svg") == 4 and "http-equiv" not in page
  assert 'src="' not in page and "<strong>undecided</strong>" in page


def test_a_changed_suite_is_told(finished):
  found = make_rows(finished, {"B4": [0.9], "A1": [0.9]})
  for row in found:
    row["suite_sha256"] = "0"
    row["result"]["test_accuracy"] = None
  text = document.to_markdown(report.make(found))
  assert "wording has changed" in text
  assert "the test set was not read" in text and "nan" not in text


@pytest.mark.parametrize(
  ("key", "words"),
  [("data_sha256", "different data"), ("flags", "different flags")],
)
def test_rows_of_other_data_are_not_compared(finished, tmp_path, key, words):
  found = make_rows(finished, {"B4": [0.9], "A1": [0.9]})
  found[1][key] = "other"
  path = tmp_path / rows.ROWS
  rows.write_all(path, found)
  with pytest.raises(InputError, match=words):
    rows.read_all(path)


def test_a_folder_without_rows(tmp_path, finished):
  with pytest.raises(InputError, match="holds no rows yet"):
    rows.read_all(tmp_path)
  root, _ = finished
  rows.write_all(tmp_path / rows.ROWS, rows.read_all(root))
  assert len(rows.read_all(tmp_path)) == 2
  shutil.rmtree(tmp_path)


def test_time_stands_still_between_two_processes():
  def line(time, epoch):
    point = {"val/accuracy": 0.5, "val/loss": 1.0, "flops/total": 1}
    point |= {"flops/train": 1, "parameters": 1, "time/epoch": 1.0}
    return point | {"epoch": epoch, "step": epoch, "time": time}

  events = [
    {"type": "run_started", "time": 100.0},
    {"type": "resumed", "time": 500.0},
  ]
  lines = [line(101.0, 1), line(102.0, 2), line(503.0, 2), line(504.0, 3)]
  found = rows.curve(lines, events)
  assert [p["epoch"] for p in found] == [1, 2, 3]
  assert [p["seconds"] for p in found] == [1.0, 5.0, 6.0]


def test_the_data_of_a_row_name_no_folder(finished, tmp_path):
  root, _ = finished
  job, item = make_job(root), runner.Item("A0", 0)
  shutil.copytree(job.folder(item), tmp_path / "run")
  result = json.loads((tmp_path / "run" / "result.json").read_text())
  result["data"] = "CIFAR-10, binary files in /home/me/my data"
  (tmp_path / "run" / "result.json").write_text(json.dumps(result))
  checkpoints.save(tmp_path / "run" / "checkpoints", 1, {"state/a": [1.0]}, {})
  config = runner.base_config(job, 0, TINY)
  row = rows.make(
    tmp_path / "run",
    suite=job.suite,
    arm="A0",
    seed=0,
    config=arms_lib.apply(config, {"tamiyo.policy": "never"}),
    flags={"data.dir": "/home/me", "train.epochs": 2},
    extra={},
  )
  assert row["result"]["data"] == "CIFAR-10, binary files"
  assert row["flags"] == {"train.epochs": 2}
  assert "/home/me" not in json.dumps(row)


def test_the_stages_of_a_slot():
  def event(kind, epoch, **fields):
    return {"type": kind, "epoch": epoch, "slot": "a", **fields}

  row = {
    "curve": [{}] * 9,
    "timeline": [
      event("germinated", 1),
      event("stage_changed", 3, now="BLENDING"),
      event("culled", 4),
      event("germinated", 6, lane=1),
      event("fossilized", 8, lane=1),
    ],
  }
  assert figures.stages(row) == {
    "a": [(1, 3, "TRAINING"), (3, 4, "BLENDING")],
    "a#2": [(6, 8, "TRAINING"), (8, 9, "FOSSILIZED")],
  }
