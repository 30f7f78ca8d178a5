"""The page of one run: its figures are those of the files, and it is safe."""

import base64
import hashlib
import json
import re

import pytest

from esper_jax.nissa.report import record, single
from esper_jax.nissa.report.story import tell
from esper_jax.nissa.table import percent
from tests.nissa.run_files import (
  Page,
  event,
  line,
  long_run,
  planted,
  recorded,
  write,
)

STARTED = event("run_started", 0, policy="heuristic")
EVIL = "</script><script>alert(1)</script>\"'&"


def page_of(path):
  return Page(single.make(record.read(path)))


def figures_of(page):
  return dict(zip(page.texts["dt"], page.texts["dd"][::2], strict=True))


def test_the_figures_are_those_of_result_json(tmp_path):
  path = recorded(tmp_path)
  result = json.loads((path / "result.json").read_text())
  found = figures_of(page_of(path))
  assert found == {
    "validation accuracy": percent(result["val_accuracy"]),
    "test accuracy": percent(result["test_accuracy"]),
    "parameters": f"{result['params_final']:,}",
    "all FLOPs": "5.85 G",
    "seconds": f"{result['wall_seconds']:.1f}",
    "seeds": str(result["germinated"]),
  }


@pytest.mark.parametrize(
  ("host", "says"),
  [
    ("mlp", "train the same config with --control, or with tamiyo.policy=nev"),
    ("given", "call grow as before with policy='never' and another workdir, "),
  ],
)
def test_it_says_how_its_control_is_trained(tmp_path, host, says):
  path = write(tmp_path, lines=[line(1)], events=[STARTED], host__name=host)
  (told,) = [p for p in page_of(path).texts["p"] if "only a control" in p]
  assert f"only a control can tell: {says}" in told


def test_every_epoch_is_in_the_table(tmp_path):
  path = recorded(tmp_path)
  header, *rows = page_of(path).tables["Every epoch"]
  logged = [
    x
    for x in map(json.loads, (path / "metrics.jsonl").read_text().splitlines())
    if "val/loss" in x
  ]
  assert header[0] == "epoch"
  assert len(rows) == len(logged) == 30
  for row, x in zip(rows, logged, strict=True):
    assert row[:6] == [
      str(x["epoch"]),
      f"{x['train/epoch_loss']:.4f}",
      f"{x['val/loss']:.4f}",
      percent(x["train/epoch_accuracy"]),
      percent(x["val/accuracy"]),
      f"{x['parameters']:,}",
    ]


def test_the_curves_hold_the_numbers_of_the_log(tmp_path):
  path = recorded(tmp_path)
  run = record.read(path)
  page = page_of(path)
  told = [json.loads(text) for text in page.texts["script"][:-1]]
  assert [len(t["curves"]) for t in told] == [2, 2, 1, 2]
  found = [y for _, y in told[0]["curves"][1]["points"]]
  assert found == pytest.approx(run.series("val/loss"), rel=1e-5)
  found = [y for _, y in told[3]["curves"][0]["points"]]
  assert found == pytest.approx(run.series("flops/total"), rel=1e-5)
  assert [8, "conv3x3 in slot3_1 planted"] in told[0]["marks"]
  assert [13, "conv3x3 in slot3_1 permanent"] in told[0]["marks"]


def test_seeds_and_decisions_are_in_their_tables(tmp_path):
  path = recorded(tmp_path)
  tables = page_of(path).tables
  seeds = tables["The seeds, in the order in which they were planted"]
  assert seeds[0][-2:] == [
    "contribution when it ended, nats",
    "standard errors",
  ]
  assert seeds[1] == [
    "slot3_1",
    "conv3x3",
    "4,640",
    "8",
    "13",
    "permanent",
    "+0.0452 \u00b1 0.0150",
    "+3.0",
  ]
  name = "Every decision, what came of it, and what happened without one"
  rows = tables[name][1:]
  assert tables[name][0][-1] == "effect measured by then, nats"
  events = (path / "events.jsonl").read_text()
  assert sum(row[2] != "none" for row in rows) == events.count('"decision"')
  for row in rows:
    assert json.dumps(row[3])[1:-1] in events
  assert rows[0][4:] == [
    "planted after epoch 8",
    "permanent +0.0452 \u00b1 0.0150",
  ]
  assert ["slot2_1", "cull conv3x3"] in [row[1:3] for row in rows]


def test_the_config_and_the_environment_are_whole(tmp_path):
  path = recorded(tmp_path)
  run = record.read(path)
  tables = page_of(path).tables
  found = {
    f"{section}.{key}" if section != "general" else key: value
    for section, rows in tables.items()
    if rows[0] == ["key", "value"] and section != "environment"
    for key, value in rows[1:]
  }
  assert set(found) == set(run.config)
  assert found["optimizer.learning_rate"] == "0.005"
  assert found["data.dir"] == '""'
  assert found["data.augment"] == "none"
  assert found["host.inner_widths"] == "1, 1, 1"
  environment = dict(tables["environment"][1:])
  assert environment["config hash"] == run.environment["config_hash"]
  assert environment["jax"] == "0.10.2"
  assert environment["policy used"] == "heuristic"


def test_a_data_set_that_was_not_read_is_not_named(tmp_path):
  source = "folder:/images"
  path = write(tmp_path / "run", lines=[], events=[], data__source=source)
  rows = dict(page_of(path).tables["data"][1:])
  assert rows["source"] == source
  assert rows["name"] == "not read: data.source takes its place"


def test_links_lead_somewhere_and_nothing_is_fetched(tmp_path):
  text = single.make(record.read(recorded(tmp_path)))
  page = Page(text)
  assert {link.removeprefix("#") for link in page.links} <= set(page.ids)
  assert len(page.ids) == len(set(page.ids))
  assert "http://" not in text and "https://" not in text
  assert "<link" not in text and "url(" not in text and "@import" not in text
  assert not [a for _, a, _ in page.elements if "src" in a]


def test_only_the_page_s_own_script_may_run(tmp_path):
  page = page_of(recorded(tmp_path))
  (policy,) = [a["content"] for _, a, _ in page.elements if "http-equiv" in a]
  digest = hashlib.sha256(page.texts["script"][-1].encode()).digest()
  assert f"script-src 'sha256-{base64.b64encode(digest).decode()}'" in policy
  assert policy.startswith("default-src 'none';")
  kinds = [a.get("type") for tag, a, _ in page.elements if tag == "script"]
  assert kinds == ["application/json"] * 4 + [None]


def test_figures_and_tables_have_names_and_take_the_focus(tmp_path):
  page = page_of(recorded(tmp_path))
  for tag, attributes, _ in page.elements:
    if attributes.get("class") == "chart":
      assert (attributes["role"], attributes["tabindex"]) == ("img", "0")
    if tag == "rect" and attributes.get("tabindex"):
      assert attributes["aria-label"]
  assert page.texts["caption"] == list(page.tables)
  scopes = {a.get("scope") for tag, a, _ in page.elements if tag == "th"}
  assert scopes == {"col", "row"}


def test_what_comes_from_a_run_cannot_become_html(tmp_path):
  slot = f"slot{EVIL}"
  path = write(
    tmp_path / "<img src=x onerror=alert(1)>",
    lines=[line(1, {slot: "TRAINING"}), line(2, {slot: "HOLDING"})],
    events=[
      STARTED,
      event(
        "decision",
        1,
        slot=slot,
        action="germinate",
        blueprint=EVIL,
        reason=EVIL,
      ),
      planted(1, slot, blueprint=EVIL, key=EVIL),
      event("fault", 2, kind="x", reason=EVIL),
      event("culled", 2, slot=slot, reason=EVIL, contribution=-0.5),
      event("run_finished", 2, status="failed", reason=EVIL),
    ],
    result={"status": "failed", "epochs": 2, "reason": EVIL, "data": EVIL},
    host__name=EVIL,
    data__dir=EVIL,
  )
  page = page_of(path)
  tags = {tag for tag, _, _ in page.elements}
  assert "img" not in tags
  assert sum(tag == "script" for tag, _, _ in page.elements) == 5
  assert all("alert(1)" not in page.texts["script"][n] for n in (-1,))
  assert not any(
    name.startswith("on") for _, a, _ in page.elements for name in a
  )
  told = json.loads(page.texts["script"][0])
  assert [1, f"{EVIL} in {slot} planted"] in told["marks"]
  rows = page.tables["The seeds, in the order in which they were planted"]
  assert rows[1][:2] == [slot, EVIL]


@pytest.mark.parametrize(
  ("status", "state", "says"),
  [
    ("completed", "completed", "The run completed 3 epochs (930 steps)"),
    (
      "interrupted",
      "interrupted after epoch 3 of 30",
      "The run was interrupted after 3 epochs",
    ),
    (
      "failed",
      "failed after epoch 3 of 30",
      "(no space is left)",
    ),
  ],
)
def test_how_it_ended(tmp_path, status, state, says):
  kind = "interrupted" if status == "interrupted" else "run_finished"
  path = write(
    tmp_path,
    lines=[line(n) for n in (1, 2, 3)],
    events=[STARTED, event(kind, 3, status=status)],
    result={
      "status": status,
      "epochs": 3,
      "reason": "no space is left" if status == "failed" else None,
    },
  )
  page = page_of(path)
  assert page.texts["span"][0] == state
  assert says in page.texts["p"][1].replace("\u00a0", " ")
  assert "data-reload" not in dict(page.elements[0][1])


def test_a_run_that_goes_on(tmp_path):
  path = write(tmp_path, lines=[line(1), line(2)], events=[STARTED])
  page = page_of(path)
  assert page.texts["span"][0] == "running, epoch 2 of 30"
  assert page.elements[0][1]["data-reload"] == "yes"
  assert "A run that goes on writes it anew" in page.texts["footer"][0]
  told = page.texts["p"][1].replace("\u00a0", " ")
  assert told == (
    "The run is under way: 2 epochs of 30 so far in 2.5 s, on digits. The host,"
    " resnet8 with 0 slots, has 100 parameters, as at the start. Policy"
    " heuristic planted no seed. Validation accuracy is 75.00 %. All of it took"
    " 3,000 FLOPs."
  )


def test_a_run_whose_steps_are_limited_may_end_before_its_epochs(tmp_path):
  path = write(tmp_path, lines=[line(1)], train__max_steps=15)
  assert page_of(path).texts["span"][0] == "running, epoch 1 of at most 30"


def test_a_run_that_has_just_begun(tmp_path):
  page = page_of(write(tmp_path))
  assert page.texts["span"][0] == "running, epoch 0 of 30"
  assert page.texts["p"].count("No epoch is over yet.") == 4
  assert "Nothing was decided." in page.texts["p"]
  assert figures_of(page)["parameters"] == "-"
  assert "Every epoch" in page.tables


def test_a_run_that_was_rolled_back_and_resumed(tmp_path):
  path = write(
    tmp_path,
    lines=[line(1), line(2), line(3), line(2, attempt=1)],
    events=[
      STARTED,
      event("fault", 3, kind="loss_spike", reason="the loss rose"),
      event("rolled_back", 1, reason="the loss rose", attempt=1),
      event("quarantined", 1, slot="slot1"),
      event("resumed", 2, redone_steps=5, redone_flops=10),
    ],
  )
  page = page_of(path)
  rows = page.tables["Resumptions, faults and fallbacks"]
  assert [row[2].split(" (")[0] for row in rows[1:]] == [
    "fault",
    "rolled back",
    "slot1: quarantined",
    "resumed after epoch 2, step 20",
  ]
  told = json.loads(page.texts["script"][0])
  assert told["marks"] == [[1, "rolled back to here"]]
  assert len(page.tables["Every epoch"]) == 1 + 2


def test_figures_that_are_not_finite_are_gaps(tmp_path):
  path = write(
    tmp_path, lines=[line(1), line(2, **{"val/loss": "NaN"}), line(3)]
  )
  page = page_of(path)
  told = json.loads(page.texts["script"][0])
  assert [y for _, y in told["curves"][1]["points"]] == [
    2.0,
    None,
    pytest.approx(2 / 3),
  ]
  assert page.tables["Every epoch"][2][2] == "nan"


@pytest.mark.parametrize(
  ("events", "says"),
  [
    ([planted(1, "a")], "planted 1 seed: 1 is still judged."),
    (
      [
        planted(1, "a"),
        planted(1, "b"),
        event("culled", 3, slot="a", contribution=None),
        event("growth_cancelled", 3, slot="b"),
      ],
      "planted 2 seeds: 1 was culled and 1 was given up.",
    ),
    (
      [
        *(planted(1, slot) for slot in "abcde"),
        *(event("fossilized", 3, slot=slot) for slot in "abcde"),
        planted(4, "f"),
        planted(4, "g"),
      ],
      "planted 7 seeds: 5 were made permanent and 2 are still judged.",
    ),
    (
      [planted(1, "a"), event("fossilized", 3, slot="a", contribution=None)],
      "1 was made permanent (dense in a at epoch 3).",
    ),
    (
      [
        planted(1, "a"),
        event(
          "fossilized", 3, slot="a", contribution=0.25, contribution_se=0.125
        ),
      ],
      "(dense in a at epoch 3, +0.2500 \u00b1 0.1250 nats by then).",
    ),
  ],
)
def test_what_grew_in_words(tmp_path, events, says):
  path = write(tmp_path, lines=[line(1), line(4)], events=[STARTED, *events])
  assert says in tell(record.read(path)).replace("\u00a0", " ")


def test_a_seed_that_lives_is_shown_in_its_stage(tmp_path):
  path = write(
    tmp_path,
    lines=[line(1), line(2), line(3)],
    events=[
      STARTED,
      planted(1, "a"),
      event("stage_changed", 3, slot="a", was="TRAINING", now="BLENDING"),
    ],
  )
  page = page_of(path)
  rows = page.tables["The seeds, in the order in which they were planted"]
  assert rows[1] == ["a", "dense", "72", "1", "", "blending", "", ""]
  told = json.loads(page.texts["script"][0])
  assert told["marks"] == [[1, "dense in a planted"]]


def test_a_network_that_grew_in_words(tmp_path):
  path = write(
    tmp_path,
    lines=[line(1), line(2, parameters=172)],
    events=[STARTED, planted(2, "a")],
  )
  says = "began with 100 parameters and has by now 172, 1.72 times as many."
  assert says in tell(record.read(path))


def test_the_report_of_a_long_run_is_small(tmp_path):
  text = single.make(record.read(long_run(tmp_path)))
  assert len(text.encode()) < 3_000_000
  page = Page(text)
  rows = page.tables["The seeds, in the order in which they were planted"]
  assert len(rows) > 140
  folded = [text.split("\n")[0] for text in page.texts["summary"]]
  assert folded == [
    f"All {len(rows) - 1} seeds",
    f"All {3 * (len(rows) - 1)} entries",
    "The figures of every epoch",
    "All keys of the config",
  ]
  assert len(page.tables["Every epoch"]) == 201


def test_numbers_and_their_units_stay_on_one_line(tmp_path):
  told = tell(record.read(recorded(tmp_path)))
  assert not re.search(r"\d (s|%|G|nats)\b", told)
  assert "+0.0452 \u00b1 0.0150\u00a0nats" in told
