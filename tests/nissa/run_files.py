"""Run directories, recorded and written by hand, and pages taken apart."""

import html.parser
import json
import shutil
from pathlib import Path
from typing import Any

RECORDED = Path(__file__).parent / "recorded"
_VOID = ("meta",)
# As much of a completed run's result.json as the console shows.
RESULT = {
  "status": "completed",
  "reason": None,
  "val_accuracy_before_growth": None,
  "val_accuracy": 0.95,
  "test_accuracy": 0.94,
  "params_initial": 10,
  "params_final": 20,
  "train_flops": 1,
  "total_flops": 2,
  "measurement_share": 0.0,
  "measure_budget": 0.05,
  "wall_seconds": 1.0,
  "compilation": {"blocking_seconds": 0.5},
  "compile_seconds": 0.5,
  "germinated": 0,
  "fossilized": 0,
  "culled": 0,
  "slots": {},
  "seeds": [],
}


def recorded(folder: Path, name: str = "grown") -> Path:
  """A copy of a real run: `make demo`, thinned; "grown" or "control"."""
  return Path(shutil.copytree(RECORDED / name, folder / name))


def event(kind: str, epoch: int, /, **fields: Any) -> dict[str, Any]:
  stamp = {"v": 1, "id": 0, "seq": 0, "time": 100.0 + epoch}
  return {**stamp, "epoch": epoch, "step": 10 * epoch, "type": kind, **fields}


def planted(epoch: int, slot: str, **fields: Any) -> dict[str, Any]:
  life = {"blueprint": "dense", "key": "dense", "parameters": 72}
  return event("germinated", epoch, slot=slot, **{**life, **fields})


def line(
  epoch: int, stages: dict[str, str] | None = None, **figures: Any
) -> dict[str, Any]:
  """An epoch's line of metrics.jsonl."""
  out = {
    "epoch": epoch,
    "step": 10 * epoch,
    "attempt": 0,
    "val/loss": 2.0 / epoch,
    "val/accuracy": 1 - 0.5 / epoch,
    "train/epoch_loss": 1.0 / epoch,
    "train/epoch_accuracy": 1 - 0.4 / epoch,
    "parameters": 100,
    "flops/train": 1000 * epoch,
    "flops/total": 1500 * epoch,
    "time": 100.5 + epoch,
    "time/epoch": 0.5,
  }
  for slot, stage in (stages or {}).items():
    out |= {
      f"slots/{slot}/stage": stage,
      f"slots/{slot}/blueprint": None,
      f"slots/{slot}/culled": 0,
      f"slots/{slot}/contribution": None,
      f"slots/{slot}/contribution_se": None,
    }
  return {**out, **figures}


def write(
  folder: Path,
  *,
  lines: list[dict[str, Any]] | None = None,
  events: list[dict[str, Any]] | None = None,
  result: dict[str, Any] | None = None,
  **keys: Any,
) -> Path:
  """A run directory with the config of the recorded one, some keys changed."""
  folder.mkdir(parents=True, exist_ok=True)
  document = json.loads((RECORDED / "grown" / "config.json").read_text())
  for key, value in keys.items():
    section, name = key.split("__")
    document["config"][section][name] = value
  (folder / "config.json").write_text(json.dumps(document))
  for name, records in (("metrics", lines), ("events", events)):
    if records is not None:
      text = "".join(json.dumps(record) + "\n" for record in records)
      (folder / f"{name}.jsonl").write_text(text)
  if result is not None:
    whole = json.loads((RECORDED / "grown" / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps({**whole, **result}))
  return folder


_LIFE = "GERMINATED TRAINING TRAINING TRAINING BLENDING BLENDING BLENDING"
_LIVES = {
  "fossilized": [*_LIFE.split(), "HOLDING", "FOSSILIZED"],
  "culled": [*_LIFE.split(), "HOLDING", "CULLED", "EMBARGOED", "EMBARGOED"],
}


def long_run(folder: Path) -> Path:
  """A run of 200 epochs with 30 slots, which grow by turns all the time."""
  slots = [f"slot{n // 10 + 1}_{n % 10 + 1}" for n in range(30)]
  events = [event("run_started", 0, policy="heuristic")]
  stages = {slot: ["DORMANT"] * 201 for slot in slots}
  for n, slot in enumerate(slots):
    for start in range(4 + 5 * (n % 7), 180, 35):
      fate = ("fossilized", "culled")[(n + start // 35) % 2]
      gain = {"contribution": 0.001 * (n % 9) - 0.003, "contribution_se": 0.001}
      why = f"validation loss improved 0.4 % over 2 epochs; {slot} has most to"
      asked = {"slot": slot, "action": "germinate", "blueprint": "conv3x3"}
      ends = {"slot": slot, "was": "TRAINING", "now": "BLENDING"}
      events += [
        event("decision", start, **asked, reason=f"{why} gain, " * 4),
        planted(start + 1, slot, blueprint="conv3x3", parameters=36928),
        event("stage_changed", start + 4, **ends),
        event(fate, start + 8, slot=slot, reason="the policy", **gain),
      ]
      life = _LIVES[fate]
      stages[slot][start : start + len(life)] = life
      if fate == "fossilized":
        rest = 35 - len(life)
        stages[slot][start + len(life) : start + 35] = ["FOSSILIZED"] * rest
  lines = [
    line(epoch, {slot: stages[slot][epoch] for slot in slots})
    for epoch in range(1, 201)
  ]
  events.sort(key=lambda e: e["epoch"])
  return write(folder, lines=lines, events=events, train__epochs=200)


class Page(html.parser.HTMLParser):
  """What a page holds; parsing fails where elements are not nested well.

  Attributes:
    ids, links: attributes of elements.
    tables: caption -> rows of cells as texts, the header first.
    figures: title -> what is in it.
    texts: by element, all that is in elements of that name.
    elements: (name, attributes, what is around it).
  """

  def __init__(self, text: str):
    super().__init__()
    self.ids: list[str] = []
    self.links: list[str] = []
    self.tables: dict[str, list[list[str]]] = {}
    self.figures: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    self.texts: dict[str, list[str]] = {}
    self.elements: list[tuple[str, dict[str, Any], tuple[str, ...]]] = []
    self._open: list[str] = []
    self._rows: list[list[str]] = []
    self._caption = ""
    self._parts: list[tuple[str, dict[str, Any]]] = []
    self.feed(text)
    self.close()
    assert self._open == []

  def handle_starttag(self, tag, attrs):
    found = dict(attrs)
    self.elements.append((tag, found, tuple(self._open)))
    self._parts.append((tag, found))
    if "id" in found:
      self.ids.append(found["id"])
    if "href" in found:
      self.links.append(found["href"])
    if tag == "table":
      self._rows = []
    elif tag == "tr":
      self._rows.append([])
    elif tag in ("th", "td"):
      self._rows[-1].append("")
    elif tag == "figure":
      self._parts = []
    if tag not in _VOID:
      self._open.append(tag)
      self.texts.setdefault(tag, []).append("")

  def handle_startendtag(self, tag, attrs):
    self.elements.append((tag, dict(attrs), tuple(self._open)))
    self._parts.append((tag, dict(attrs)))

  def handle_endtag(self, tag):
    assert self._open.pop() == tag
    if tag == "table":
      self.tables[self.texts["caption"][-1]] = self._rows
    elif tag == "figure":
      self.figures[self.texts["figcaption"][-1]] = self._parts

  def handle_data(self, data):
    for tag in set(self._open):
      self.texts[tag][-1] += data
    if self._rows and ("th" in self._open or "td" in self._open):
      self._rows[-1][-1] += data


def shapes(page: Page, title: str, name: str, kind: str) -> list[dict]:
  """The attributes of a figure's elements of a name that have a class."""
  return [
    attributes
    for tag, attributes in page.figures[title]
    if tag == name and kind in (attributes.get("class") or "").split()
  ]
