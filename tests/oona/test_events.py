"""The types of events: their fields, their lines, their table."""

import dataclasses
import json
from pathlib import Path

import pytest

from esper_jax.oona import jsonl
from esper_jax.oona.events import (
  EVENT_TYPES,
  RUN_EVENTS,
  TYPES,
  from_line,
  make,
)
from esper_jax.oona.record import optional_fields, own_fields
from tests.oona.sample_events import FIELDS

ROOT = Path(__file__).parents[2]
STAMP = {"id": 3, "seq": 4, "time": 12.5, "epoch": 1, "step": 7}


def sample(type, **changes):
  return make(type, STAMP | FIELDS[type] | changes)


@pytest.mark.parametrize("type", EVENT_TYPES)
def test_a_line_has_the_stamp_and_then_the_fields_as_published(type):
  event = sample(type)
  line = event.to_line()
  before = {"v": 1, **STAMP, "type": type}
  assert list(line.items()) == list((before | FIELDS[type]).items())
  assert from_line(line) == event == line
  assert (len(event), dict(event)) == (len(line), line)


@pytest.mark.parametrize("type", EVENT_TYPES)
def test_a_missing_or_unknown_field_is_refused(type):
  optional = optional_fields(TYPES[type])
  for name in STAMP.keys() | FIELDS[type].keys() - optional:
    fields = STAMP | FIELDS[type]
    del fields[name]
    with pytest.raises(ValueError, match=f"'{type}': the field {name} is miss"):
      make(type, fields)
  with pytest.raises(ValueError, match="has no field colour; its own fields a"):
    sample(type, colour="red")


def test_what_is_optional_is_left_out_and_what_is_unknown_is_null():
  line = sample("fossilized").to_line()
  assert line["contribution"] is None and "lane" not in line
  assert [*sample("fossilized", lane=1)][-1] == "lane"
  assert [*sample("gate_refused", action="cull")][-3:] == [
    "slot",
    "action",
    "reason",
  ]


def test_an_event_is_frozen():
  event = sample("culled")
  with pytest.raises(dataclasses.FrozenInstanceError):
    event.reason = "another"
  with pytest.raises(TypeError):
    event["reason"] = "another"


def test_a_line_of_another_version_or_type_is_refused():
  line = sample("culled").to_line()
  with pytest.raises(ValueError, match="not an event of version 1: v=2"):
    from_line(line | {"v": 2})
  with pytest.raises(ValueError, match="unknown event type 'grown'; valid: ru"):
    from_line(line | {"type": "grown"})


def test_lines_of_a_real_run_are_kept_byte_for_byte():
  with open(Path(__file__).parent / "recorded.jsonl", "rb") as lines:
    for line in lines:
      assert jsonl.encode(from_line(json.loads(line))) == line


def table() -> str:
  """The table of docs/events.md."""
  rows = ["| type | when | fields |", "| --- | --- | --- |"]
  for name, kind in TYPES.items():
    optional = optional_fields(kind)
    fields = ", ".join(
      f"`{field}`" + ("?" if field in optional else "")
      for field in own_fields(kind)
    )
    when = (kind.__doc__ or "").partition("\n")[0].rstrip(".")
    mark = "" if name in RUN_EVENTS else " *"
    rows.append(f"| `{name}`{mark} | {when} | {fields} |")
  return "\n".join(rows)


def test_the_table_in_the_documents_is_that_of_the_types():
  assert table() in (ROOT / "docs" / "events.md").read_text(), table()
