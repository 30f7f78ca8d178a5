"""What is put into a registry is found again, from all of its layers."""

import dataclasses
import shutil

import pytest

from esper_jax.types import InputError
from esper_jax.urza import registry as registry_lib
from esper_jax.urza.artefact import Damaged, File
from esper_jax.urza.registry import Found, open_registry
from tests.urza import making
from tests.urza.making import DEVICE, OTHER


@pytest.fixture
def home(tmp_path, monkeypatch):
  """An empty home directory."""
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  monkeypatch.delenv("XDG_DATA_HOME", raising=False)
  monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
  (tmp_path / "home").mkdir()
  return tmp_path / "home"


def test_what_is_put_is_found_and_loaded(tmp_path):
  registry = making.registry(tmp_path)
  artefact, files = making.artefact()
  key = registry.put(artefact, files)
  assert key == artefact.key
  assert registry.keys() == (key,)
  for one in (registry, making.registry(tmp_path)):
    assert one.load(key) == (artefact, files)
    assert one.find(artefact.spec.handle) == ((artefact,), ())
    assert one.record(key) == (artefact, (), tmp_path)
  assert registry.put(artefact, files) == key  # again, which changes nothing


def test_what_is_not_there_is_a_key_error(tmp_path):
  registry = making.registry(tmp_path)
  for key in ("0" * 64, "", "../x", "é"):
    for read in (registry.load, registry.record):
      with pytest.raises(KeyError):
        read(key)
    assert registry.find(key) == ((), ())


def test_a_handle_finds_all_targets_and_no_other_kernel(tmp_path):
  registry = making.registry(tmp_path)
  made = [making.artefact(1, target=target) for target in (75, 80, 90)]
  made += [making.artefact(2), making.artefact(1, kernel="other")]
  for artefact, files in made:
    registry.put(artefact, files)
  found, damages = registry.find(made[0][0].spec.handle)
  assert {a.spec.target for a in found} == {75, 80, 90}
  assert {a.spec.handle for a in found} == {made[0][0].spec.handle}
  assert damages == ()


def test_evidence_is_kept_in_order_and_changes_the_status(tmp_path):
  registry, (key,) = making.filled(tmp_path)
  records = registry.record(key).evidence
  assert sorted(r["kind"] for r in records) == sorted(
    make.__name__ for make in making.ALL
  )
  assert list(making.registry(tmp_path).record(key).evidence) == list(records)
  late = making.gpu(made="2026-11-26T08:00:00Z", deterministic=False)
  registry.append(key, late)
  assert registry.record(key).evidence[-1] == late
  assert len(registry.query(status="REJECTED", device_kind=DEVICE)) == 1


def test_the_same_record_is_kept_once(tmp_path):
  registry, (key,) = making.filled(tmp_path)
  before = registry.record(key).evidence
  registry.append(key, making.gpu())
  assert registry.record(key).evidence == before


def test_evidence_is_refused_where_it_would_claim_too_much(tmp_path):
  registry = making.registry(tmp_path)
  key = registry.put(*making.artefact())
  with pytest.raises(InputError, match="step_ratios"):
    registry.append(key, {**making.gpu(), "step_ratios": []})
  with pytest.raises(InputError, match="no artefact 000"):
    registry.append("0" * 64, making.gpu())
  assert registry.record(key).evidence == ()


def test_files_must_be_those_that_the_artefact_describes(tmp_path):
  registry = making.registry(tmp_path)
  artefact, files = making.artefact()
  wrong = dataclasses.replace(
    artefact, files={**artefact.files, "ptx": File("0" * 64, 3)}
  )
  for one, given in (
    (artefact, {**files, "ptx": b"x"}),
    (artefact, {"ptx": files["ptx"]}),
    (artefact, {**files, "cubin": b""}),
    (wrong, files),
  ):
    with pytest.raises(InputError, match="does not describe its files"):
      registry.put(one, given)
  spec = dataclasses.replace(artefact.spec, kernel="../x")
  with pytest.raises(InputError, match="cannot be stored"):
    registry.put(dataclasses.replace(artefact, spec=spec), files)
  assert making.files_of(tmp_path) == []


def test_one_spec_cannot_have_two_contents(tmp_path):
  """Or evidence about the first would speak for the second."""
  registry, (key,) = making.filled(tmp_path)
  other, files = making.changed(b"other")
  with pytest.raises(InputError, match=f"has other files under {key}"):
    registry.put(other, files)
  making.registry(tmp_path / "new").put(other, files)
  both = open_registry(layers=[tmp_path / "new", tmp_path])
  assert both.load(key)[0] == other
  assert both.record(key).evidence == ()  # what there is is about the first
  with pytest.raises(InputError, match="has other files"):
    both.put(*making.artefact())


def test_layers_are_read_as_one(tmp_path):
  below, (first,) = making.filled(tmp_path / "a")
  registry = open_registry(layers=[tmp_path / "a", tmp_path / "b"])
  second = registry.put(*making.artefact(1))
  run = making.gpu(device_kind=OTHER)
  registry.append(first, run)
  registry.keep("policies", "p", {"n": 2}, b"two")
  below.keep("policies", "p", {"n": 1}, b"one")
  below.keep("policies", "q", {"n": 1}, b"one")
  assert set(registry.keys()) == {first, second}
  assert below.keys() == (first,)
  assert len(registry.record(first).evidence) == len(making.ALL) + 1
  assert registry.record(first).layer == tmp_path / "a"
  assert registry.record(second).layer == tmp_path / "b"
  assert run not in below.record(first).evidence
  assert len(registry.query(status="VALIDATED", device_kind=OTHER)) == 1
  assert registry.names("policies") == ("p", "q")
  assert registry.kept("policies", "p") == ({"n": 2}, b"two")
  assert registry.kept("policies", "q").blob == b"one"


def test_a_whole_copy_in_another_layer_is_used(tmp_path):
  making.filled(tmp_path / "a")
  registry, (key,) = making.filled(tmp_path / "b")
  registry = open_registry(layers=[tmp_path / "a", tmp_path / "b"])
  for path in making.files_of(tmp_path / "a"):
    if path.parent.name in ("artefacts", "blobs"):
      path.write_bytes(b"")
  assert registry.load(key) == making.artefact()
  assert registry.record(key).layer == tmp_path / "b"


def test_query_filters_by_figures(tmp_path):
  registry = making.registry(tmp_path)
  for n in range(6):
    artefact, files = making.artefact(
      n, kernel=("even", "odd")[n % 2], target=(75, 80, 90)[n // 2]
    )
    key = registry.put(artefact, files)
    registry.append(key, making.static(spills=4 * (n // 3)))
    if n:
      registry.append(key, making.gpu(kernel_us=10.0 * n))
    if n == 5:
      registry.append(key, making.gpu(device_kind=OTHER, kernel_us=1.0))
  constants = {making.artefact(n)[0].spec.constants: n for n in range(6)}

  def numbers(**filters):
    found = registry.query(**filters)
    assert all(isinstance(one, Found) for one in found)
    return [
      constants[registry.record(one.key).artefact.spec.constants]
      for one in found
    ]

  assert numbers(device_kind=DEVICE) == [1, 2, 3, 4, 5, 0]  # quickest first
  assert numbers(kernel="odd", device_kind=DEVICE) == [1, 3, 5]
  assert numbers(kernel="none") == []
  assert set(numbers(target=80)) == {2, 3}
  assert set(numbers(tags=("no_spills",))) == {0, 1, 2}
  assert set(numbers(tags=("low_memory", "high_speed"))) == {1, 2}
  assert numbers(tags=("spills",)) == []  # a tag, not a part of one
  assert numbers(max_latency_us=30.0, device_kind=DEVICE) == [1, 2, 3]
  assert numbers(max_latency_us=5.0, device_kind=OTHER) == [5]
  assert numbers(status="VALIDATED", device_kind=OTHER) == [5]
  assert set(numbers(status="PENDING", device_kind=OTHER)) == {0, 1, 2, 3, 4}
  assert numbers(kernel="even", target=90, max_latency_us=50.0) == [4]
  with pytest.raises(InputError, match="name one"):
    registry.query(status="VALIDATED")
  (found,) = registry.query(kernel="even", target=75)
  assert found.latency_us is None
  assert found.handle == making.artefact(0, kernel="even")[0].spec.handle


def test_a_folder_that_goes_while_in_use_is_an_empty_one(tmp_path):
  registry, (key,) = making.filled(tmp_path / "r")
  handle = making.artefact()[0].spec.handle
  assert registry.find(handle)[0]
  shutil.rmtree(tmp_path / "r")
  assert registry.find(handle) == ((), ())
  assert registry.query() == []
  assert registry.names("policies") == ()
  with pytest.raises(KeyError):
    registry.load(key)
  registry.put(*making.artefact())  # comes back where it is needed
  assert registry.find(handle)[0]


def test_the_search_path_ends_with_the_users_choice(home, tmp_path):
  own = home / ".local/share/esper_jax/urza"
  registry = open_registry()
  assert [f.path for f in registry.folders] == [registry_lib.PACKAGE, own]
  key = registry.put(*making.artefact())
  assert (own / "artefacts" / f"{key}.json").is_file()
  registry = open_registry(str(tmp_path / "named"))
  assert registry.folders[1].path == own
  assert registry.load(key)
  second = registry.put(*making.artefact(1))
  assert (tmp_path / "named" / "artefacts" / f"{second}.json").is_file()
  # Named again, it is one layer.
  assert len(open_registry(str(own)).folders) == 2


def test_a_home_that_cannot_be_written_is_done_without(home, tmp_path):
  (home / ".local").write_text("")
  registry = open_registry()
  assert [f.path for f in registry.folders] == [registry_lib.PACKAGE]
  with pytest.raises(InputError, match="no layer can be written"):
    registry.put(*making.artefact())
  assert open_registry(str(tmp_path / "named")).put(*making.artefact())
  with pytest.raises(InputError, match="cannot write .*/x: Not a directory"):
    open_registry(str(home / ".local" / "x"))


def test_reading_makes_no_folder(home, tmp_path):
  registry = open_registry(make=False)
  assert registry.keys()  # the package's
  assert not (home / ".local").exists()
  registry.put(*making.artefact())  # which makes it where it is needed
  assert (home / ".local/share/esper_jax/urza/artefacts").is_dir()
  (tmp_path / "file").write_text("")
  for name, what in (("none", "no such folder"), ("file", "not a folder")):
    path = tmp_path / name
    with pytest.raises(InputError, match=f"{what}: {path}; .* build --dir="):
      open_registry(str(path), make=False)
    with pytest.raises(InputError, match=what):
      open_registry(layers=[path], make=False)
  assert not (tmp_path / "none").exists()
  assert open_registry(str(tmp_path), make=False).writable.path == tmp_path


def test_documents_are_kept_under_their_names(tmp_path):
  registry = making.registry(tmp_path)
  cost = {"shape": [32, 32, 64], "parameters": 1024, "flops": 2**21}
  timed = cost | {"latency_us": 12.5, "device_kind": DEVICE}
  untimed = cost | {"latency_us": None, "device_kind": None}
  document = {"spec": {"rank": 8}, "costs": [timed, untimed]}
  registry.keep("blueprints", "lowrank", document)
  assert registry.kept("blueprints", "lowrank") == (document, None)
  registry.keep("policies", "first", {"run": "a"}, b"weights")
  registry.keep("policies", "first", {"run": "b"}, b"more")
  assert registry.kept("policies", "first") == ({"run": "b"}, b"more")
  assert registry.names("policies") == ("first",)
  with pytest.raises(KeyError, match="no second is kept"):
    registry.kept("policies", "second")


@pytest.mark.parametrize(
  "kind, name, document, words",
  [
    ("kernels", "a", {}, "blueprints, policies"),
    ("policies", "../a", {}, "cannot be a name"),
    ("policies", "a", {}, "comes with a blob"),
    ("policies", "a", [], "a mapping"),
    ("policies", "a", {"x": object()}, "no JSON form"),
    ("blueprints", "a", {"spec": {}}, "needs spec"),
    ("blueprints", "a", {"spec": {}, "costs": [{}]}, "needs spec"),
    (
      "blueprints",
      "a",
      {
        "spec": {},
        "costs": [
          {"shape": [1], "parameters": 1, "flops": 1}
          | {"latency_us": 1.0, "device_kind": None}
        ],
      },
      "device_kind",
    ),
  ],
)
def test_what_cannot_be_kept_is_refused(tmp_path, kind, name, document, words):
  with pytest.raises(InputError, match=words):
    making.registry(tmp_path).keep(kind, name, document)
  assert making.files_of(tmp_path) == []


def test_a_kept_document_that_was_changed_is_damage(tmp_path):
  registry = making.registry(tmp_path)
  registry.keep("policies", "a", {"run": "a"}, b"weights")
  for path in making.files_of(tmp_path):
    data = path.read_bytes()
    for changed in (b"", data[:-1], data + b" ", data.swapcase(), b"[]"):
      path.write_bytes(changed)
      with pytest.raises(Damaged):
        registry.kept("policies", "a")
    path.write_bytes(data)
  (tmp_path / "kept/policies/b.json").write_bytes(
    (tmp_path / "kept/policies/a.json").read_bytes()
  )
  with pytest.raises(Damaged, match="another's"):
    registry.kept("policies", "b")
