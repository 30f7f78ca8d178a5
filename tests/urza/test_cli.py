"""The command line says what is there, and no more than that."""

import json
import subprocess
import sys

import pytest

from esper_jax.types import counted
from esper_jax.urza import cli, listing
from esper_jax.urza.device import Device
from esper_jax.urza.registry import open_registry
from tests.urza import making
from tests.urza.making import DEVICE, OTHER


@pytest.fixture
def store(tmp_path, monkeypatch):
  """A registry in a home of its own: one artefact that ran, one that did not.

  `Registry.folders` of the command line are the package's, the home's, and it.
  """
  monkeypatch.setattr("esper_jax.urza.registry.PACKAGE", tmp_path / "package")
  monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  registry, (ran,) = making.filled(tmp_path / "r")
  registry.append(ran, making.probe(device_kind=OTHER))
  compiled = registry.put(*making.artefact(1, kernel="blend", target=90))
  registry.append(compiled, making.static())
  return tmp_path, ran, compiled


@pytest.fixture
def run(store, capsys):
  """Runs a command on the registry: (exit code, stdout, stderr)."""

  def call(command, *arguments):
    code = cli.main([command, "--dir", str(store[0] / "r"), *arguments])
    return code, *capsys.readouterr()

  return call


def test_list_says_what_never_ran(store, run):
  _, ran, compiled = store
  code, out, _ = run("list")
  lines = {line[:12]: line for line in out.splitlines()}
  assert code == 0 and len(lines) == 3
  assert list(lines)[:2] == [compiled[:12], ran[:12]]  # blend, copy
  assert out.splitlines()[-1] == "2 artefacts: 0 run here (no GPU)"
  assert lines[ran[:12]].endswith(f"VALIDATED on {DEVICE}")
  assert lines[compiled[:12]].endswith("PENDING, compiled, not run")
  place = f"in {store[0] / 'r'}"
  assert "blend  float32  sm_90  C=1 num_stages=2" in lines[compiled[:12]]
  assert f"num_warps=4  {place}  evidence: " in lines[compiled[:12]]
  assert "evidence: static  " in lines[compiled[:12]]


def test_what_was_probed_has_run_but_was_not_judged():
  probe = {"kind": "probe", "device_kind": DEVICE, "ok": True}
  failed = {**probe, "ok": False, "device_kind": OTHER}
  assert listing.not_timed([failed, {"kind": "static"}]) == "compiled, not run"
  assert listing.not_timed([probe, failed]) == f"probed on {DEVICE}"


def test_list_for_a_device_claims_nothing_from_another(store, run):
  _, ran, compiled = store
  _, out, _ = run("list", f"--device={OTHER}")
  lines = {line[:12]: line for line in out.splitlines()}
  assert lines[ran[:12]].endswith(f"PENDING on {OTHER}, run on {DEVICE} only")
  assert lines[compiled[:12]].endswith(f"PENDING on {OTHER}, compiled, not run")
  assert out.endswith(f"2 artefacts: 0 validated on {OTHER}\n")
  assert "VALIDATED" not in out


def test_list_names_the_layers(store, run):
  making.registry(store[0] / "package").put(*making.artefact(5))
  open_registry().put(*making.artefact(6))
  _, out, _ = run("list")
  assert "C=5 num_stages=2 num_warps=4  in the package  evidence" in out
  assert "C=6 num_stages=2 num_warps=4  in yours  evidence" in out


def test_list_shows_only_what_was_asked_for(store, run):
  _, ran, compiled = store
  for words, keys in (
    (["--kernel=copy"], [ran]),
    (["--target=sm_90"], [compiled]),
    (["--target=90", "--kernel=copy"], []),
    (["--dtype=float32"], [compiled, ran]),
    (["--dtype=bfloat16"], []),
  ):
    _, out, _ = run("list", *words)
    *lines, last = out.splitlines()
    assert [line[:12] for line in lines] == [key[:12] for key in keys]
    assert last.startswith(f"{counted(len(keys), 'artefact')}: ")


def test_on_a_gpu_the_summary_says_what_fits_it(store):
  registry = making.registry(store[0] / "r")
  records = [registry.record(key) for key in registry.keys()]
  for target, fitting in ((75, 0), (80, 1), (90, 2), (100, 1)):
    here = Device(DEVICE, target, "", "")
    assert listing.summary(records, None, here=here) == (
      f"2 artefacts: {fitting} fit this device ({DEVICE}, sm_{target}),"
      " 1 validated on it"
    )


def test_list_shows_what_is_damaged_and_what_is_kept(store, run):
  folder, ran, _ = store
  making.registry(folder / "r").keep("policies", "p", {}, b"weights")
  (folder / "r" / "artefacts" / f"{ran}.json").write_bytes(b"{}")
  code, out, _ = run("list")
  assert code == 0
  assert f"{ran[:12]}  DAMAGED: " in out
  assert out.endswith("1 artefact and 1 damaged: 0 run here (no GPU)\n")
  assert "kept: policies/p" in out


def test_show_prints_all_that_is_known(store, run):
  folder, ran, compiled = store
  code, out, _ = run("show", ran[:8])
  shown = json.loads(out)
  assert code == 0 and shown["key"] == ran
  assert shown["status"] == {DEVICE: "VALIDATED"}
  assert shown["elsewhere"] == "PENDING"
  assert len(shown["evidence"]) == len(making.ALL) + 1
  assert shown["layer"] == str(folder / "r")
  assert json.loads(run("show", compiled)[1])["ran"] == "compiled, not run"


def test_query_prints_what_fits(store, run):
  _, ran, compiled = store
  _, out, _ = run("query", "--kernel=copy", "--max_latency_us=25")
  assert out.splitlines()[0].startswith(
    f"{ran[:12]}  copy  float32  sm_80  20.0 us"
  )
  _, out, _ = run("query", "--target=90", "--tags=low_memory,no_spills")
  assert out.startswith(f"{compiled[:12]}  blend  float32  sm_90  compiled, ")
  _, out, _ = run("query", "--device", OTHER, "--status=PENDING")
  assert out.count("not run there") == 2
  assert run("query", "--target=sm_86")[1] == "0 found\n"
  assert run("query", "--dtype=bfloat16")[1] == "0 found\n"


def test_verify_ends_with_one_where_something_is_wrong(store, run):
  folder, ran, _ = store
  line = f"2 artefacts, no problems; looked at {folder / 'r'}\n"
  assert run("verify")[:2] == (0, line)
  (folder / "r" / "artefacts" / f"{ran}.json").write_bytes(b"{}")
  code, out, _ = run("verify")
  assert code == 1
  assert f"{ran}.json: " in out
  code, out, err = run("show", ran)
  assert (code, out) == (1, "")
  assert err.startswith("damaged: ") and err.count("\n") == 1


def test_an_archive_goes_out_and_in(store, run, capsys):
  folder, ran, _ = store
  code, out, _ = run("export", str(folder / "a.tar"))
  assert code == 0 and out.startswith("2 artefacts, 7 records")
  sha256 = out.split()[-1]
  command = ["import", f"--dir={folder / 'new'}", str(folder / "a.tar")]
  assert cli.main([*command, f"--sha256={sha256}"]) == 0
  assert capsys.readouterr().out == out
  assert making.registry(folder / "new").load(ran)
  code, out, _ = run("export", str(folder / "b.tar"), ran[:6])
  assert out.startswith("1 artefact, ")


def test_gc_says_what_it_deletes(store, run):
  assert run("gc")[:2] == (0, "0 files, 0 bytes deleted\n")
  folder = store[0] / "r" / "blobs"
  orphan = folder / making.registry(store[0] / "r").folders[0].write_blob(b"x")
  making.os.utime(orphan, (1e9, 1e9))
  size = orphan.stat().st_size
  expected = f"{orphan}\n1 file, {size} bytes would be deleted\n"
  assert run("gc", "--dry_run")[1] == expected
  assert run("gc")[1].endswith(f"{size} bytes deleted\n")
  assert not orphan.exists()


@pytest.mark.parametrize(
  "command, words",
  [
    (("show", "0000"), "no artefact's key begins with '0000'; the nearest is "),
    (("probe", "BADKEY"), "key begins with 'BADKEY'; the nearest is "),
    (("probe", "6"), "'6' is too short for a key; give at least 4 characters"),
    (("show", "6"), "'6' is too short for a key; give at least 4 characters"),
    (("list", "--kernel=nope"), "unknown kernel 'nope'; there are blend, "),
    (("list", "--target=sm_99"), "unknown target '99'; there are 75, 80"),
    (("list", "--dtype=int8"), "unknown dtype 'int8'; there are float32"),
    (("list", "--device=nope"), f"'nope'; there are {OTHER}, {DEVICE}"),
    (("query", "--kernel=nope"), "unknown kernel 'nope'; there are blend, "),
    (("query", "--target=1"), "unknown target '1'; there are 75"),
    (("query", "--dtype=int8"), "unknown dtype 'int8'; there are float32"),
    (("query", "--tags=fast"), "unknown tag 'fast'; there are high_speed, "),
    (("query", "--device=nope"), f"'nope'; there are {OTHER}, {DEVICE}"),
    (("validate", "--kernel=nope"), "unknown kernel 'nope'; there are lowrank"),
    (("tune", "--kernel=nope"), "unknown kernel 'nope'; there are lowrank"),
    (("tune", "--dtype=int8"), "unknown dtype 'int8'; there are float32"),
    (("query", "--status=VALIDATED"), "name one"),
    (("import", "none.tar"), "none.tar is not imported: No such file"),
    (("export", "none/a.tar"), "cannot write none/a.tar"),
  ],
)
def test_bad_input_is_said_in_one_line(run, command, words):
  code, out, err = run(*command)
  assert code == 2 and out == ""
  assert words in err
  assert err.startswith("error: ") and err.count("\n") == 1


def test_a_folder_that_others_can_write_needs_to_be_named(store, run):
  (store[0] / "r").chmod(0o777)
  code, _, err = run("verify")
  assert code == 2 and "can be written by others" in err
  assert err.endswith(f"or name {store[0] / 'r'} in --trusted\n")
  assert run("verify", "--trusted", str(store[0] / "r"))[0] == 0


@pytest.mark.parametrize(
  "command", ["verify", "list", "query", "gc", ["show", "0000"]], ids=str
)
def test_a_folder_that_is_not_there_is_not_made(store, capsys, command):
  words = [command] if isinstance(command, str) else command
  folder = store[0] / "none"
  assert cli.main([*words, f"--dir={folder}"]) == 2
  out, err = capsys.readouterr()
  assert out == "" and err.count("\n") == 1
  assert err.startswith(f"error: no such folder: {folder}; ")
  assert not folder.exists()


def test_wrong_arguments_end_with_two(capsys):
  for arguments in ([], ["nothing"], ["show"], ["list", "--no"]):
    with pytest.raises(SystemExit) as caught:
      cli.main(arguments)
    assert caught.value.code == 2
  with pytest.raises(SystemExit) as caught:
    cli.main(["--help"])
  assert caught.value.code == 0
  out = capsys.readouterr().out
  for command in ("verify", "list", "export", *cli.ELSEWHERE):
    assert f"\n    {command} " in out


@pytest.mark.parametrize("command", cli.ELSEWHERE)
def test_commands_of_other_modules_have_arguments(command, capsys):
  with pytest.raises(SystemExit) as caught:
    cli.main([command, "--help"])
  assert caught.value.code == 0
  out = capsys.readouterr().out
  assert f"esper_jax.urza {command}" in out
  assert ("3 it was not judged" in " ".join(out.split())) == (
    command == "probe"
  )


def test_it_runs_without_the_modules_of_other_commands(store):
  """And a reader that has seen enough is no error."""
  script = """
import sys
from esper_jax.urza import cli
assert cli.main(sys.argv[1:]) == 0
others = {f"esper_jax.urza.{module}" for module, _ in cli.ELSEWHERE.values()}
assert not others & sys.modules.keys()
assert not {"triton", "jax_triton"} & sys.modules.keys()
"""
  command = [sys.executable, "-c", script, "list", "--dir", store[0] / "r"]
  subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
  command = [sys.executable, "-m", "esper_jax.urza", "list"]
  done = subprocess.run(
    ["bash", "-c", 'set -o pipefail; "$@" | true', "bash", *command],
    capture_output=True,
    text=True,
  )
  assert (done.returncode, done.stderr) == (0, "")
