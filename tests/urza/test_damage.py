"""Whatever happens to a file of an artefact, it is never used unawares.

ESPER_TEST_FULL=1 damages each file 200 times in each way instead of 20 times.
"""

import random

import pytest

from esper_jax.urza.artefact import Damaged
from esper_jax.urza.evidence import Status, status
from tests.urza import making
from tests.urza.making import DEVICE

TIMES = 200 if making.FULL else 20


@pytest.fixture(scope="module")
def store(tmp_path_factory):
  """A registry of two artefacts, the key of one, and its files."""
  folder = tmp_path_factory.mktemp("store")
  registry, (key, _) = making.filled(folder, 2)
  artefact = registry.record(key).artefact
  own = {key, *(file.sha256 for file in artefact.files.values())}
  files = [
    path
    for path in making.files_of(folder)
    if any(path.name.startswith(name) for name in own)
  ]
  assert len(files) == 1 + 2 + len(making.ALL)
  return folder, key, files


def flip(path, rng, files):
  data = bytearray(path.read_bytes())
  data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
  return bytes(data)


def truncate(path, rng, files):
  data = path.read_bytes()
  return data[: rng.randrange(len(data))]


def swap(path, rng, files):
  return rng.choice([p for p in files if p != path]).read_bytes()


def read(registry, key):
  """As dispatch does: all that is known of a key, and its code."""
  record = registry.record(key)
  assert registry.load(key)[1] == making.artefact()[1]
  return record


@pytest.mark.parametrize("damage", [flip, truncate, swap])
def test_a_changed_file_is_always_noticed(store, damage):
  folder, key, files = store
  registry, rng = making.registry(folder), random.Random(0)
  others = making.files_of(folder)  # the other artefact's among them
  for path in files:
    whole = path.read_bytes()
    for _ in range(TIMES):
      path.write_bytes(damage(path, rng, others))
      with pytest.raises(Damaged):
        read(registry, key)
      path.write_bytes(whole)
  assert status(read(registry, key).evidence, DEVICE) == Status.VALIDATED


def test_a_missing_file_is_noticed_or_only_takes_away(store):
  """A record that is gone can take a status away; code must be complete."""
  folder, key, files = store
  registry = making.registry(folder)
  for path in files:
    whole = path.read_bytes()
    path.unlink()
    if path.parent.name == "artefacts":
      with pytest.raises(KeyError):
        read(registry, key)
    elif path.parent.name == "blobs":
      with pytest.raises(Damaged, match="missing"):
        read(registry, key)
    else:
      missing = b'"kind":"gpu"' in whole
      expected = Status.PENDING if missing else Status.VALIDATED
      assert status(read(registry, key).evidence, DEVICE) == expected
    path.write_bytes(whole)


def test_find_tells_what_is_damaged_and_returns_what_is_whole(tmp_path):
  registry = making.registry(tmp_path)
  whole, broken = making.artefact(), making.artefact(target=90)
  keys = [registry.put(*made) for made in (whole, broken)]
  handle = whole[0].spec.handle
  assert len(registry.find(handle)[0]) == 2
  (tmp_path / "artefacts" / f"{keys[1]}.json").write_bytes(b"{}")
  artefacts, damages = registry.find(handle)
  assert artefacts == (whole[0],)
  assert [keys[1] in damage for damage in damages] == [True]
  # Where nothing is whole, one whose handle cannot be read is told too.
  (tmp_path / "artefacts" / f"{keys[0]}.json").unlink()
  artefacts, damages = making.registry(tmp_path).find(handle)
  assert artefacts == ()
  assert [keys[1] in damage for damage in damages] == [True]


def test_find_and_query_never_fail(store):
  folder, key, files = store
  rng, handle = random.Random(1), making.artefact()[0].spec.handle
  manifest = [path for path in files if path.parent.name == "artefacts"]
  records = [path for path in files if path.parent.parent.name == "evidence"]
  for path in manifest + records:
    whole = path.read_bytes()
    for damage in (flip, truncate, swap):
      path.write_bytes(damage(path, rng, making.files_of(folder)))
      registry = making.registry(folder)
      artefacts, damages = registry.find(handle)
      assert bool(damages) == (path in manifest) == (not artefacts)
      assert key not in {found.key for found in registry.query()}
      assert len(registry.keys()) == 2
      path.write_bytes(whole)


def test_a_record_with_a_name_of_its_own_is_damage(tmp_path):
  registry, (key,) = making.filled(tmp_path)
  (tmp_path / "evidence" / key[:2] / f"{key}.json").write_bytes(b"{}")
  with pytest.raises(Damaged, match="not named as evidence"):
    registry.record(key)


def test_folders_that_cannot_be_read_are_damage_not_a_crash(tmp_path):
  registry, (key,) = making.filled(tmp_path)
  place = tmp_path / "evidence" / key[:2]
  place.rename(tmp_path / "moved")
  place.symlink_to(place)  # a loop, which nothing can follow
  with pytest.raises(Damaged, match="cannot read"):
    registry.record(key)
  assert registry.find(making.artefact()[0].spec.handle)[0]
