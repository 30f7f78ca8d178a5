"""A manifest is read back as it was written, or refused."""

import copy
import dataclasses
import json

import pytest

from esper_jax.urza.artefact import Damaged, from_document, to_document
from esper_jax.urza.kernel import canonical, digest_of
from esper_jax.urza.layers import read_manifest
from tests.urza import making

ARTEFACT = making.artefact()[0]
DOCUMENT = json.loads(canonical(to_document(ARTEFACT)))


def resealed(document):
  """With the SHA-256 that fits, as whoever forges one would give it."""
  body = {n: v for n, v in document.items() if n != "sha256"}
  return body | {"sha256": digest_of(body)}


def places(value, path=()):
  """Paths to every value inside a document."""
  yield path
  if isinstance(value, dict | list):
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for name, item in items:
      yield from places(item, (*path, name))


def test_a_manifest_is_read_back():
  assert from_document(copy.deepcopy(DOCUMENT)) == ARTEFACT
  assert read_manifest(canonical(DOCUMENT)) == ARTEFACT


def test_the_key_names_everything_that_decides_the_bytes():
  changes = {
    "kernel": "other",
    "source": "0" * 64,
    "signature": (),
    "constants": (),
    "tiles": (),
    "options": (),
    "target": 90,
    "triton": "3.8.0",
  }
  fields = {field.name for field in dataclasses.fields(ARTEFACT.spec)}
  assert changes.keys() == fields
  specs = [
    dataclasses.replace(ARTEFACT.spec, **{name: value})
    for name, value in changes.items()
  ]
  assert len({spec.key for spec in specs} | {ARTEFACT.key}) == len(specs) + 1
  same = {spec.handle for spec in specs} & {ARTEFACT.spec.handle}
  assert same  # tiles, options, target and Triton do not change the handle
  for spec, name in zip(specs, changes, strict=True):
    free = name in ("tiles", "options", "target", "triton")
    assert (spec.handle == ARTEFACT.spec.handle) == free, name


@pytest.mark.parametrize("value", [None, -1, "x", [], {}, 1.5, [[1]]])
def test_a_wrong_value_anywhere_is_damage_and_nothing_else(value):
  for path in places(DOCUMENT):
    document = copy.deepcopy(DOCUMENT)
    if not path:
      document = copy.deepcopy(value)
    else:
      place = document
      for name in path[:-1]:
        place = place[name]
      if place[path[-1]] == value:
        continue
      place[path[-1]] = value
    with pytest.raises(Damaged):
      from_document(document)


@pytest.mark.parametrize("value", [None, -1, [], {}, 1.5, [[1]]])
def test_a_forged_one_must_still_have_the_types_of_a_manifest(value):
  for path in places(DOCUMENT):
    if not path or path[0] not in ("launch", "files", "schema"):
      continue
    document = copy.deepcopy(DOCUMENT)
    place = document
    for name in path[:-1]:
      place = place[name]
    place[path[-1]] = value
    with pytest.raises(Damaged):
      from_document(resealed(document))


@pytest.mark.parametrize(
  "data",
  [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"a": NaN}', b"1e999"],
)
def test_what_is_no_manifest_is_damage(data):
  with pytest.raises(Damaged):
    read_manifest(data)


def test_it_must_be_written_as_it_was_stored():
  with pytest.raises(Damaged, match="not written as a manifest"):
    read_manifest(json.dumps(DOCUMENT).encode())
