"""A history that was tampered with is refused by name."""

import json
import shutil

import pytest

from esper_jax import InputError
from esper_jax.export import command_line
from esper_jax.oona import lineage
from esper_jax.oona.bus import Bus
from esper_jax.oona.jsonl import JsonlWriter
from tests.oona.sample_events import publish

BORN = {"type": "germinated", "slot": "a", "key": "x", "blueprint": "dense"}
HELD = {"type": "stage_changed", "slot": "a", "now": "HOLDING"}
KEPT = {"type": "fossilized", "slot": "a"}
GONE = {"type": "culled", "slot": "a"}


def topology(*seeds):
  records = [
    {"slot": slot, "key": key, "blueprint": name} for slot, key, name in seeds
  ]
  return {"seeds": records[:1], "merged": records[1:]}


@pytest.fixture
def folder(tmp_path):
  """An export as far as its history is concerned."""
  root = tmp_path / "out"
  root.mkdir()
  (root / lineage.WEIGHTS).write_bytes(b"weights")
  (root / lineage.TOPOLOGY).write_text(
    json.dumps(topology(("a", "x", "dense")))
  )
  files = {
    name: lineage.hash_file(root / name)
    for name in (lineage.WEIGHTS, lineage.TOPOLOGY)
  }
  story = lineage.chain(
    [{"type": "began"}, BORN, HELD, KEPT, {"type": "exported", "files": files}]
  )
  (root / lineage.LINEAGE).write_text(json.dumps(story))
  return root


def rewrite(folder, change):
  path = folder / lineage.LINEAGE
  document = json.loads(path.read_text())
  change(document)
  path.write_text(json.dumps(document))


def test_a_whole_one_is_verified(folder):
  found = lineage.verify(folder)
  assert found.changes == 5
  assert set(found.files) == {
    lineage.WEIGHTS,
    lineage.TOPOLOGY,
    lineage.LINEAGE,
  }
  assert lineage.verify(folder, head=found.head) == found
  with pytest.raises(InputError, match="is not the lineage that was asked"):
    lineage.verify(folder, head="0" * 64)


@pytest.mark.parametrize("name", [lineage.WEIGHTS, lineage.TOPOLOGY])
def test_a_changed_or_missing_file_is_named(folder, name):
  data = (folder / name).read_bytes()
  (folder / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
  with pytest.raises(InputError, match=f"{name} was changed"):
    lineage.verify(folder)
  (folder / name).unlink()
  with pytest.raises(InputError, match=f"{name} is missing"):
    lineage.verify(folder)


def test_a_file_that_is_not_bound_is_named(folder):
  (folder / lineage.MODULE).write_text("import os")
  with pytest.raises(InputError, match="model.py is not of this export"):
    lineage.verify(folder)


@pytest.mark.parametrize("number", range(5))
def test_every_entry_is_bound_by_the_next(folder, number):
  def change(document):
    document["entries"][number]["more"] = 1

  rewrite(folder, change)
  with pytest.raises(
    InputError, match=r"lineage.json was changed: (entry|its)"
  ):
    lineage.verify(folder)


@pytest.mark.parametrize(
  ("change", "reason"),
  [
    (lambda d: d["entries"].pop(1), "entry 1 of 4 is not the one that the"),
    (lambda d: d["entries"].pop(0), "entry 1 of 4 does not follow from noth"),
    (lambda d: d["entries"][2].update(now="TRAINING"), "entry 3 of 5 is not"),
    (lambda d: d["entries"].pop(), "its head is not the SHA-256"),
    (lambda d: d.update(head="0"), "its head is not the SHA-256"),
    (lambda d: d.update(entries=[]), "it has no entries"),
    (lambda d: d.update(entries=["x"]), "it has no entries"),
    (lambda d: d.update(schema=7), "has schema 7, this version reads 1"),
    (lambda d: d.update(lineage.chain([BORN])), "its last entry binds no"),
  ],
)
def test_what_was_done_to_the_lineage_is_told(folder, change, reason):
  rewrite(folder, change)
  with pytest.raises(InputError, match=reason):
    lineage.verify(folder)


@pytest.mark.parametrize(
  ("text", "reason"), [("{", "is not JSON"), ("[]", "is not a JSON object")]
)
def test_a_lineage_that_is_none(folder, text, reason):
  (folder / lineage.LINEAGE).write_text(text)
  with pytest.raises(InputError, match=f"lineage.json {reason}"):
    lineage.verify(folder)


def test_a_rewritten_history_must_still_lead_to_the_network(folder):
  def leave_out_the_birth(document):
    contents = [
      {k: v for k, v in entry.items() if k != "previous"}
      for entry in document["entries"]
      if entry["type"] != "germinated"
    ]
    document.update(lineage.chain(contents))

  rewrite(folder, leave_out_the_birth)
  with pytest.raises(InputError, match="does not tell of 'x' in slot 'a'"):
    lineage.verify(folder)


@pytest.mark.parametrize(
  ("story", "stages"),
  [
    ([BORN], {"x": "TRAINING"}),
    ([BORN, HELD], {"x": "HOLDING"}),
    ([BORN, HELD, KEPT], {"x": "FOSSILIZED"}),
    ([BORN, GONE], {}),
    ([BORN, {"type": "growth_cancelled", "slot": "a"}], {}),
    ([{"type": "growth_cancelled", "slot": "a"}], {}),
    ([BORN, {**GONE, "lane": 1}], {"x": "TRAINING"}),
    # A permanent seed stays, whatever becomes of the next one there.
    (
      [BORN, KEPT, {**BORN, "key": "y"}, HELD, GONE],
      {"x": "FOSSILIZED"},
    ),
    ([BORN, {"type": "quarantined", "slot": "a"}], {"x": "TRAINING"}),
    ([{"type": "rolled_back"}, KEPT, HELD], {}),
  ],
)
def test_what_changes_leave(story, stages):
  found = lineage.living(story)
  assert {key: seed["stage"] for (_, _, key), seed in found.items()} == stages


def test_a_run_that_went_on_has_seeds_of_its_own():
  again = {"type": "continued"}
  story = [BORN, HELD, KEPT, again, BORN, again, BORN, GONE]
  found = lineage.living(story)
  stages = {name: seed["stage"] for name, seed in found.items()}
  assert stages == {(0, "a", "x"): "FOSSILIZED", (1, "a", "x"): "TRAINING"}
  both = topology(("a", "x", "dense"), ("a", "x", "dense"))
  both["merged"][0]["generation"] = 1
  lineage.check_seeds([BORN, KEPT, again, BORN, KEPT], both, "log")
  with pytest.raises(InputError, match="log does not tell of 'x'"):
    lineage.check_seeds([BORN, KEPT], both, "log")
  del both["merged"][0]
  with pytest.raises(InputError, match="log tells of 'x'"):
    lineage.check_seeds([BORN, KEPT, again, BORN, KEPT], both, "log")


def test_the_head_is_told_without_reading_every_file(folder):
  assert lineage.head_of(folder) == lineage.verify(folder).head
  rewrite(folder, lambda document: document.update(head="0" * 64))
  with pytest.raises(InputError, match="its head is not the SHA-256"):
    lineage.head_of(folder)


def test_a_story_goes_on_from_what_was_told(folder):
  told = lineage.story(folder)
  assert [entry["type"] for entry in told][::4] == ["began", "exported"]
  more = lineage.chain([*told, {"type": "continued"}])
  before = json.loads((folder / lineage.LINEAGE).read_text())
  assert more["entries"][:-1] == before["entries"]
  assert more["entries"][-1]["previous"] == before["head"]


def test_a_history_and_a_network_must_agree():
  lineage.check_seeds([BORN], topology(), "log")  # isolated: not exported
  lineage.check_seeds([BORN, KEPT], topology(("a", "x", "dense")), "log")
  with pytest.raises(InputError, match="log tells of 'x' in slot 'a'"):
    lineage.check_seeds([BORN, KEPT], topology(), "log")
  with pytest.raises(InputError, match="log does not tell of 'x' in slot 'a'"):
    lineage.check_seeds([BORN], topology(("a", "x", "norm")), "log")


def test_changes_are_those_up_to_the_checkpoint(tmp_path):
  log = JsonlWriter(tmp_path / "events.jsonl", fsync=False)
  bus = Bus()
  bus.subscribe(log.append)
  for epoch, kind in enumerate(
    ["run_started", "germinated", "checkpoint", "decision", "culled"]
  ):
    publish(bus, kind, epoch=epoch, step=epoch)
  log.close()

  def kinds(before):
    found = lineage.changes(tmp_path / "events.jsonl", before=before)
    return [event["type"] for event in found]

  assert kinds(bus.next_id) == ["germinated", "culled"]
  assert kinds(bus.next_id - 1) == ["germinated"]
  with pytest.raises(InputError, match="a network without its log"):
    lineage.changes(tmp_path / "none.jsonl", before=1)


def test_files_are_checked_by_name(folder):
  lineage.check_files(folder, [lineage.WEIGHTS])
  (folder / lineage.TOPOLOGY).write_text("{}")
  lineage.check_files(folder, [lineage.WEIGHTS])
  with pytest.raises(InputError, match=r"topology.json was changed: its SHA"):
    lineage.check_files(folder, [lineage.WEIGHTS, lineage.TOPOLOGY])
  with pytest.raises(InputError, match=r"model.py is missing"):
    lineage.check_files(folder, [lineage.MODULE])
  (folder / lineage.MODULE).touch()
  with pytest.raises(InputError, match=r"model.py was changed"):  # not bound
    lineage.check_files(folder, [lineage.MODULE])


def test_what_is_no_export_is_told_apart(folder):
  with pytest.raises(InputError, match="/none: no such folder; give a folder"):
    lineage.verify(folder / "none")
  with pytest.raises(InputError, match=r"lineage.json: No such file.*; give a"):
    lineage.verify(folder.parent)
  (folder.parent / "events.jsonl").touch()
  with pytest.raises(InputError, match="is a run directory.*export it first"):
    lineage.verify(folder.parent)


def test_the_command_says_what_it_does_not_know(folder, capsys):
  (folder / "notes.txt").touch()
  assert lineage.verify(folder).others == ("notes.txt",)
  assert command_line.main(["verify", str(folder)]) == 0
  assert "not checked: notes.txt\n" in capsys.readouterr().err


def test_the_command_verifies(folder, capsys, tmp_path):
  assert command_line.main(["verify", str(folder)]) == 0
  said = capsys.readouterr().out
  assert "the lineage of 5 entries leads to them" in said
  shutil.copytree(folder, tmp_path / "copy")
  (tmp_path / "copy" / lineage.WEIGHTS).write_bytes(b"other")
  assert command_line.main(["verify", str(tmp_path / "copy")]) == 2
  error = capsys.readouterr().err
  assert error.count("\n") == 1
  assert lineage.WEIGHTS in error
  assert command_line.main(["verify"]) == 2
  assert "--help" in capsys.readouterr().err
