import json
import os

import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors

from esper_jax.tamiyo import features, network, policy_file
from esper_jax.tamiyo.network import Sizes
from esper_jax.types import InputError

SIZES = Sizes(width=4, layers=1, heads=2, hidden=4)


@pytest.fixture(scope="module")
def params():
  return network.init(jax.random.key(0), SIZES)


@pytest.fixture
def path(tmp_path, params):
  path = tmp_path / "policies" / "own.safetensors"
  policy_file.save(path, params, sizes=SIZES, provenance={"seeds": [1, 2]})
  return path


def refusal(path):
  with pytest.raises(InputError) as info:
    policy_file.load(path)
  text = str(info.value)
  assert "\n" not in text and str(path) in text
  return text


def rewrite(path, change):
  """Writes the file again with other arrays and metadata, hash included."""
  data = path.read_bytes()
  arrays = safetensors.load(data)
  length = int.from_bytes(data[:8], "little")
  texts = json.loads(data[8 : 8 + length])["__metadata__"]
  del texts["sha256"]
  arrays = change(arrays, texts) or arrays
  texts["sha256"] = json.dumps(policy_file._hash(arrays, texts))
  path.write_bytes(safetensors.save(arrays, texts))


def test_what_is_saved_is_loaded_to_the_bit(path, params):
  found = policy_file.load(path)
  assert found.sizes == SIZES and found.provenance == {"seeds": [1, 2]}
  assert jax.tree.structure(found.params) == jax.tree.structure(params)
  for a, b in zip(
    jax.tree.leaves(found.params), jax.tree.leaves(params), strict=True
  ):
    assert a.dtype == np.float32 and a.tobytes() == np.asarray(b).tobytes()
  assert os.listdir(path.parent) == [path.name]


def test_metadata_says_what_the_design_asks_for(path):
  data = path.read_bytes()
  length = int.from_bytes(data[:8], "little")
  texts = json.loads(data[8 : 8 + length])["__metadata__"]
  metadata = {name: json.loads(text) for name, text in texts.items()}
  assert metadata["schema"] == policy_file.SCHEMA
  assert metadata["observation_schema"] == features.SCHEMA
  assert Sizes(**metadata["network"]) == SIZES
  assert metadata["blueprint_features"][0] == "fits"
  assert metadata["provenance"] == {"seeds": [1, 2]}


def test_the_same_policy_is_the_same_file(params, path, tmp_path):
  again = tmp_path / "again.safetensors"
  sha256 = policy_file.save(
    again, params, sizes=SIZES, provenance={"seeds": [1, 2]}
  )
  assert again.read_bytes() == path.read_bytes()
  assert policy_file.load(path).sha256 == sha256
  other = policy_file.to_bytes(params, sizes=SIZES)
  assert policy_file.from_bytes(other, "").sha256 != sha256


def test_what_is_missing_or_no_file(tmp_path):
  assert "no such policy file" in refusal(tmp_path / "none.safetensors")
  assert "cannot be read: Is a directory" in refusal(tmp_path)


def test_every_changed_byte_shows(path):
  data = path.read_bytes()
  step = max(1, len(data) // 300)
  for at in (*range(0, len(data), step), len(data) - 1):
    changed = bytearray(data)
    changed[at] ^= 4
    path.write_bytes(bytes(changed))
    refusal(path)


def test_a_file_that_was_cut_or_is_another(path):
  data = path.read_bytes()
  for content in (b"", b"no", data[: len(data) // 2], data + b"x"):
    path.write_bytes(content)
    assert "is not a policy file, or damaged" in refusal(path)
  path.write_bytes(safetensors.save({"x": np.zeros(1, np.float32)}))
  assert "is not a policy file" in refusal(path)
  path.write_bytes(safetensors.save({}, {"sha256": "3", "schema": "{"}))
  assert "is not a policy file" in refusal(path)
  with path.open("wb") as file:
    file.truncate(policy_file._LARGEST + 1)
  assert "more than 16,777,216 bytes" in refusal(path)


@pytest.mark.parametrize(
  "name, value, says",
  [
    ("schema", 2, "has policy schema 2, this version reads 1"),
    ("observation_schema", "beef", "other features (observation schema beef"),
    ("network", None, "names a network that cannot be: null"),
    ("network", {**SIZES._asdict(), "width": 5}, "cannot be"),
    ("network", {**SIZES._asdict(), "width": 0}, "cannot be"),
    ("network", {**SIZES._asdict(), "width": 2**40}, "cannot be"),
    ("network", {**SIZES._asdict(), "width": 8}, "does not fit the network"),
    ("network", {**SIZES._asdict(), "layers": 2}, "block_1/hidden/bias"),
  ],
)
def test_other_schemas_and_networks(path, name, value, says):
  def change(arrays, texts):
    texts[name] = json.dumps(value)

  rewrite(path, change)
  assert says in refusal(path)


def test_weights_that_are_missing_or_not_finite(path):
  rewrite(path, lambda arrays, _: {**arrays, "more": np.zeros(1, np.float32)})
  assert "more is missing, not expected" in refusal(path)
  rewrite(
    path, lambda arrays, _: {k: v for k, v in arrays.items() if k != "more"}
  )

  def spoil(arrays, texts):
    return {**arrays, "stay/bias": np.full(1, np.nan, np.float32)}

  rewrite(path, spoil)
  assert "weights that are not finite (stay/bias)" in refusal(path)


def test_provenance_of_another_form_is_none(path):
  def change(arrays, texts):
    texts["provenance"] = "[]"

  rewrite(path, change)
  assert policy_file.load(path).provenance == {}


def test_what_could_not_be_read_back_is_not_written(tmp_path, params):
  path = tmp_path / "p.safetensors"
  with pytest.raises(InputError, match="does not fit the network"):
    policy_file.save(path, params)
  bad = jax.tree.map(lambda x: x * np.float32("nan"), params)
  with pytest.raises(InputError, match="not finite"):
    policy_file.save(path, bad, sizes=SIZES)
  assert not path.exists()
  path.mkdir()
  with pytest.raises(InputError, match="cannot write .*p.safetensors"):
    policy_file.save(path, params, sizes=SIZES)
  assert os.listdir(tmp_path) == ["p.safetensors"]
