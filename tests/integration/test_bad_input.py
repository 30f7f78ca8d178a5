"""Bad input: one clear line, exit code 2, and nothing left behind or lost.

Most cases call `main.main` in this process. What needs another process (a live
lock, a full disk, the network, the exit code itself) starts a real one.
"""

import contextlib
import hashlib
import http.server
import json
import os
import pickle
import re
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import main
from esper_jax.data import cifar
from esper_jax.kasmina import blueprints

ROOT = Path(__file__).parents[2]
DIGITS = f"--config={ROOT}/configs/digits.py"
CIFAR10 = f"--config={ROOT}/configs/cifar10.py:smoke"
CIFAR100 = f"--config={ROOT}/configs/cifar100.py:smoke"
HEURISTIC = "--config.tamiyo.policy=heuristic"
SMOKE = f"{DIGITS}:smoke"
# The smallest host, so that a start takes no time.
SMALL = (
  SMOKE,
  "--config.host.name=mlp",
  "--config.host.width=4",
  "--config.host.depth=1",
  "--config.host.inner_widths=()",
  "--config.kasmina.blueprints=dense",
)
MLP_ON_CIFAR = (
  CIFAR10,
  "--config.host.name=mlp",
  "--config.host.width=4",
  "--config.host.depth=1",
  "--config.kasmina.blueprints=dense",
)


def contents(folder: Path) -> dict[str, str]:
  """Every name below a folder; a file with its hash, but not the lock's."""
  found = {}
  for path in sorted(folder.rglob("*")):
    name = path.relative_to(folder).as_posix()
    found[name] = ""
    if path.is_file() and path.name != ".lock" and path.stat().st_size < 1e6:
      found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
  return found


def check_one_line(code: int, out: str, err: str) -> str:
  assert (code, out) == (2, ""), err
  assert err.startswith("error: ")
  assert err.endswith("\n")
  assert err.count("\n") == 1
  return err


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys) -> Callable[..., str]:
  """Runs a command line that must be refused; returns what was said."""
  monkeypatch.chdir(tmp_path)

  def run(*arguments: str) -> str:
    before = contents(tmp_path)
    code = main.main(["main.py", *arguments])
    message = check_one_line(code, *capsys.readouterr())
    assert contents(tmp_path) == before
    return message

  return run


# --- The command line and the config -----------------------------------------


@pytest.mark.parametrize(
  ("arguments", "says"),
  [
    ([], "--config is missing"),
    ([DIGITS, "--wrokdir=a"], "--wrokdir: no such flag; the nearest is --work"),
    ([DIGITS, "again"], "stray argument: again"),
    ([DIGITS, "--quiet", "--verbose"], "exclude each other"),
    ([f"{DIGITS}:tpu"], "no such profile: tpu; the profiles are gpu, cpu"),
    ([f"--config={ROOT}/configs/digit.py"], "no such file; the nearest is"),
    ([f"--config={ROOT}/configs"], "configs: Is a directory"),
    (
      [DIGITS, "--config.optimizer.lerning_rate=1"],
      "no such key; the nearest is --config.optimizer.learning_rate",
    ),
    ([DIGITS, "--config.train=3"], "is a section; set one of its keys: epochs"),
    (
      [DIGITS, "--config.train.epochs=many"],
      "--config.train.epochs=many: must be an integer of at least 1",
    ),
    (
      [DIGITS, "--config.optimizer.b2=1.5"],
      "--config.optimizer.b2=1.5: must be a number in [0, 1)",
    ),
    ([DIGITS, "--config.seed=-1"], "must be an integer from 0 to 2147483647"),
    (
      [DIGITS, "--config.host.name=resnet10"],
      "must be one of resnet8, resnet18, resnet20, resnet32, resnet34,"
      " resnet56, mlp, gpt; the nearest is resnet18",
    ),
    ([DIGITS, "--config.data.download=perhaps"], "must be True or False"),
    ([DIGITS, "--config.data.augment=crop,rotate"], "a list out of crop,flip"),
    ([DIGITS, "--config.tamiyo.schedule=((3,"], "must be a tuple of (epoch,"),
    (
      [DIGITS, "--config.kasmina.min_training_epochs=9"],
      "must be at most --config.kasmina.max_training_epochs=8",
    ),
    (
      [DIGITS, "--config.host.inner_widths=1,1"],
      "has 2 widths where resnet8 has 3 stages",
    ),
    (
      [DIGITS, "--config.data.augment=crop", "--config.data.crop_padding=9"],
      "must be at most 8, the side of a digits image",
    ),
    ([DIGITS, "--config.optimizer.warmup_epochs=99.0"], "must be at most 24"),
    (
      [DIGITS, "--config.tamiyo.policy=schedule"],
      "needs --config.tamiyo.schedule",
    ),
    (
      [DIGITS, HEURISTIC, "--config.tamiyo.policy_path=none.safetensors"],
      "no such file",
    ),
    (
      [DIGITS, HEURISTIC, f"--config.tamiyo.policy_path={__file__}"],
      "the policy heuristic reads no file",
    ),
    (
      [DIGITS, "--config.tamiyo.policy=schedule"]
      + ["--config.tamiyo.schedule=((30,'slot1_1','conv3x3'),)"],
      "every epoch must be below --config.train.epochs=30",
    ),
  ],
)
def test_command_line_and_values(refused, arguments, says):
  assert says in refused(*arguments)


RECORDED = ROOT / "tests/integration/recorded/slot1.jsonl"


def cut_off(lines: list[str]) -> list[str]:
  return lines[:-1]


def torn(lines: list[str]) -> list[str]:
  return [*lines[:2], lines[2][:40], *lines[3:]]


def lost(lines: list[str]) -> list[str]:
  return [lines[0], *lines[2:]]


def metrics(lines: list[str]) -> list[str]:
  return ['{"epoch": 0, "step": 1, "train/loss": 2.3}']


@pytest.mark.parametrize(
  ("spoil", "says"),
  [
    (cut_off, "does not end with the run_finished of a completed run"),
    (torn, "line 3: not a JSON object"),
    (lost, "line 2: 'stage_changed' cannot happen to slot 'slot1' then"),
    (metrics, "line 1: not an event of version 1"),
    (None, "cannot read"),
  ],
)
@pytest.mark.parametrize("dry", [["--dry_run"], []], ids=["dry_run", "train"])
def test_growth_that_cannot_be_replayed(refused, tmp_path, spoil, says, dry):
  path = tmp_path / "events.jsonl"
  if spoil:
    lines = spoil(RECORDED.read_text().splitlines())
    path.write_text("\n".join(lines) + "\n")
  message = refused(SMOKE, f"--replay={path}", *dry)
  assert says in message
  assert str(path) in message
  assert "give --config.tamiyo.replay the events.jsonl of a run that" in message


@pytest.mark.parametrize(
  ("arguments", "says"),
  [
    (["--config.host.slots=slot2"], "but the host lacks that slot (it has sl"),
    (["--config.kasmina.blueprints=norm"], "not among those of the run (norm)"),
    (["--config.train.epochs=3"], "up to epoch 4, but this run has 3 epochs;"),
    (
      ["--replay_permute=all"],
      "replay_permute=all: must be slots, times or em",
    ),
    (["--replay_seed=-1"], "replay_seed=-1: must be an integer from 0 to"),
    (["--replay_seed=x"], "flag --replay_seed=x: "),
    (
      ["--replay_final", "--replay_permute=times"],
      "what is there from the start has no times; give slots, or leave out",
    ),
  ],
)
def test_replay_that_does_not_fit(refused, arguments, says):
  given = [argument.partition("=")[0] for argument in arguments]
  default = (*SMALL, "--config.host.depth=2", "--config.train.max_steps=0")
  default = (*default, "--config.train.epochs=9", f"--replay={RECORDED}")
  # Names that are given twice add up.
  kept = [d for d in default if d.partition("=")[0] not in given]
  message = refused(*kept, *arguments)
  assert says in message


@pytest.mark.parametrize(
  ("arguments", "says"),
  [
    (["--config.tamiyo.policy=replay"], "needs --config.tamiyo.replay, the ev"),
    (["--replay="], "--config.tamiyo.policy=replay: needs --config.tamiyo.rep"),
    ([f"--config.tamiyo.replay={RECORDED}"], "the policy learned replays no"),
    (
      ["--replay_permute=slots"],
      "tamiyo.replay_permute=slots: the policy lear",
    ),
    (["--replay_final"], "--config.tamiyo.policy=replay"),
  ],
)
def test_replay_of_nothing(refused, arguments, says):
  assert says in refused(SMOKE, *arguments)


@pytest.mark.parametrize(
  ("source", "says"),
  [
    ("def get_config(:", "line 1: SyntaxError"),
    ("def get_config():\n  return 1 / 0", "line 2: ZeroDivisionError"),
    ("import nothing_of_this_name", "line 1: ModuleNotFoundError"),
    ("raise SystemExit(3)", "line 1: SystemExit: 3"),
    ("config = {}", "defines no get_config"),
    ("def get_config():\n  return {}", "returned dict, not"),
    (
      "from configs import base\ndef get_config():\n"
      "  c = base.get_config()\n  c.train.epoch = 3\n  return c",
      "no such key; the nearest is --config.train.epochs",
    ),
    (
      "from configs import base\ndef get_config():\n"
      "  c = base.get_config()\n  c.train.epochs = 'x'\n  return c",
      "line 4: TypeError",
    ),
  ],
)
def test_config_file(refused, tmp_path, source, says):
  (tmp_path / "own.py").write_text(source)
  assert says in refused(f"--config={tmp_path}/own.py")


@pytest.mark.parametrize(
  ("arguments", "says"),
  [
    (
      ["--config.data.train_limit=0", "--config.data.batch_size=1008"],
      "data.batch_size is 1008 but the training split has 1007 examples",
    ),
    (["--config.data.train_limit=1008"], "valid is 0 (all) to 1007"),
    (["--config.data.validation_fraction=1e-9"], "holds out 0 of 1438"),
    (["--config.data.dir=somewhere"], "comes with scikit-learn"),
    (
      ["--config.host.slots=slot1_1,slot1_9"],
      "no slot of host 'resnet8' named 'slot1_9' (did you mean 'slot1_1'?)",
    ),
    (
      ["--config.kasmina.blueprints=conv5x5"],
      "blueprint 'conv5x5' is not registered: known are conv3x3",
    ),
    (
      ["--config.kasmina.blueprints=conv3x3,dense"],
      "'dense' fits no slot of the host; those that do: bottleneck, conv3x3",
    ),
    (["--config.urza.modules=no_such_module"], "ModuleNotFoundError: No mod"),
    (
      ["--config.urza.modules=json", "--config.tamiyo.policy=mine"],
      "unknown policy 'mine'; valid: never, periodic",
    ),
    (
      ["--config.tamiyo.policy=schedule", "--config.train.epochs=3"]
      + ["--config.tamiyo.schedule=((1,'slot9','conv3x3'),)"],
      "slot 'slot9' does not exist; valid: slot1_1, slot2_1, slot3_1",
    ),
    (
      ["--config.tamiyo.policy=schedule", "--config.train.epochs=3"]
      + ["--config.tamiyo.schedule=((1,'slot1_1','norm'),)"],
      "blueprint 'norm' does not exist; valid: conv3x3",
    ),
    (
      ["--config.tamiyo.policy=schedule", "--config.train.epochs=3"]
      + ["--config.tamiyo.schedule=((1,'slot1_1','conv3x3'),)*2"],
      "must be a tuple of (epoch, slot, blueprint)",
    ),
    (
      ["--config.tamiyo.policy=schedule", "--config.train.epochs=3"]
      + ["--config.tamiyo.max_adaptations_per_epoch=1"]
      + [
        "--config.tamiyo.schedule="
        "((1,'slot1_1','conv3x3'),(1,'slot2_1','conv3x3'))"
      ],
      "asks for 2 germinations at epoch 1",
    ),
  ],
)
@pytest.mark.parametrize("dry", [["--dry_run"], []], ids=["dry_run", "train"])
def test_parts_that_do_not_fit(refused, arguments, says, dry):
  assert says in refused(SMOKE, *arguments, *dry)


WRONG_BLUEPRINT = """
import jax.numpy as jnp
from esper_jax.kasmina.blueprints import Blueprint, register

def init(key, spec):
  return {"w": jnp.ones(spec.channels, jnp.float32)}, {}

def apply(params, state, x, *, train, key):
  return x[..., :1] * params["w"][0].astype(x.dtype), state

register(Blueprint("narrow", init, apply, ("features",), ("w",)))
"""


@pytest.mark.parametrize(
  ("source", "says"),
  [
    (WRONG_BLUEPRINT, "blueprint 'narrow' on a slot of shape (32,): apply"),
    ("x = (", "SyntaxError"),
    ("1 / 0", "ZeroDivisionError: division by zero"),
    ("import sys; sys.exit('bye')", "SystemExit: bye"),
  ],
)
def test_module_that_registers(refused, tmp_path, monkeypatch, source, says):
  name = f"seeds_{hashlib.sha256(source.encode()).hexdigest()[:8]}"
  folder = tmp_path / "modules"
  folder.mkdir()
  (folder / f"{name}.py").write_text(source)
  monkeypatch.syspath_prepend(folder)
  monkeypatch.setattr(sys, "dont_write_bytecode", True)
  message = refused(*SMALL, f"--config.urza.modules={name}")
  assert says in message
  assert name in message
  assert "narrow" not in blueprints.names()


# --- Data --------------------------------------------------------------------


def make_cifar(folder: Path, layout: str = "cifar10") -> Path:
  """The binary layout at its real size, all zeros, as holes in the disk."""
  folder.mkdir(parents=True)
  for name, size in cifar.FORMATS[layout].archive.members.items():
    with (folder / name).open("wb") as file:
      file.truncate(size)
  return folder


def put(
  folder: Path, name: str, data: bytes, *, at: int = 0, size: int
) -> None:
  """Writes a file of a size that is zero but for some bytes."""
  folder.mkdir(exist_ok=True)
  with (folder / name).open("wb") as file:
    file.truncate(size)
    file.seek(at)
    file.write(data)


BATCH = 10_000 * 3073  # bytes of a file of CIFAR-10


class Bomb:
  """Unpickled by Python's own unpickler, it writes a file."""

  def __reduce__(self):
    return os.mkdir, ("pwned",)


def absent(folder: Path) -> None:
  shutil.rmtree(folder)


def is_a_file(folder: Path) -> None:
  absent(folder)
  folder.write_text("")


def empty(folder: Path) -> None:
  absent(folder)
  folder.mkdir()


def one_missing(folder: Path) -> None:
  (folder / "data_batch_3.bin").unlink()


def truncated(folder: Path) -> None:
  os.truncate(folder / "data_batch_1.bin", BATCH - 1)


def oversized(folder: Path) -> None:
  os.truncate(folder / "data_batch_1.bin", BATCH + 3073)


def wrong_label(folder: Path) -> None:
  put(folder, "data_batch_1.bin", b"\x0a", at=7 * 3073, size=BATCH)


def is_a_folder(folder: Path) -> None:
  (folder / "data_batch_1.bin").unlink()
  (folder / "data_batch_1.bin").mkdir()


def pickled(content: bytes) -> Callable[[Path], None]:
  """The Python layout, its first file beginning with this pickle."""

  def make(folder: Path) -> None:
    empty(folder)
    for name, _ in cifar.FORMATS["cifar10"].files:
      put(folder, name, content, size=10_000 * 3072)

  return make


@pytest.mark.parametrize(
  ("spoil", "says"),
  [
    (absent, "holds no CIFAR-10: expected data_batch_1.bin"),
    (is_a_file, "holds no CIFAR-10"),
    (empty, "holds no CIFAR-10"),
    (one_missing, "lacks data_batch_3.bin"),
    (truncated, f"has {BATCH - 1} bytes, expected {BATCH}: it is truncated"),
    (oversized, f"has {BATCH + 3073} bytes, expected {BATCH}"),
    (wrong_label, "has the label 10 among its labels, valid are 0 to 9"),
    (is_a_folder, "lacks data_batch_1.bin"),
    (pickled(pickle.dumps(Bomb())), "is a pickle with"),
    (pickled(b"\x80\x05no pickle"), "is not a readable pickle"),
    (pickled(pickle.dumps([1, 2])), "holds a list, expected a dict"),
    (
      pickled(pickle.dumps({b"data": b"", b"labels": [0] * 3})),
      "is not a uint8 array",
    ),
  ],
)
def test_data_folder(refused, tmp_path, spoil, says):
  folder = make_cifar(tmp_path / "cifar-10-batches-bin")
  spoil(folder)
  message = refused(CIFAR10, f"--config.data.dir={folder}")
  assert says in message
  assert str(folder) in message
  assert not (tmp_path / "pwned").exists()


def test_data_of_another_data_set(refused, tmp_path):
  folder = make_cifar(tmp_path / "data")
  message = refused(CIFAR100, f"--config.data.dir={folder}")
  assert f"'{folder}' holds no CIFAR-100" in message


def test_no_data_where_none_may_be_downloaded(refused, tmp_path):
  message = refused(
    CIFAR10,
    f"--config.data.cache_dir={tmp_path}/cache",
    "--config.data.download=False",
  )
  assert "--config.data.dir" in message


def python(*arguments: str, cwd: Path, **variables: str):
  """A real process of the program."""
  return subprocess.run(
    [sys.executable, str(ROOT / "main.py"), *arguments],
    cwd=cwd,
    env={**os.environ, **variables},
    capture_output=True,
    text=True,
    timeout=120,
  )


def test_no_network_and_no_data(tmp_path):
  cache = tmp_path / "cache"
  done = python(
    CIFAR10,
    f"--config.data.cache_dir={cache}",
    cwd=tmp_path,
    https_proxy="http://127.0.0.1:9",  # nobody listens
    no_proxy="",
  )
  message = check_one_line(done.returncode, done.stdout, done.stderr)
  assert "cannot be downloaded (Connection refused)" in message
  assert "--config.data.dir" in message
  assert [p.name for p in tmp_path.iterdir()] == ["cache"]
  assert [p.suffix for p in cache.iterdir()] == [".lock"]


@pytest.fixture
def impostor(tmp_path_factory):
  """A proxy that answers for any https server, and a certificate for it.

  It sends an archive that is not the official one.
  """
  if not shutil.which("openssl"):
    pytest.skip("needs openssl: apt-get install openssl")
  folder = tmp_path_factory.mktemp("impostor")
  host = "www.cs.toronto.edu"
  subprocess.run(
    ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes"]
    + ["-keyout", "key.pem", "-out", "certificate.pem", "-days", "2"]
    + ["-subj", f"/CN={host}", "-addext", f"subjectAltName=DNS:{host}"],
    cwd=folder,
    check=True,
    capture_output=True,
  )
  context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
  context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_CONNECT(self):
      self.send_response(200)
      self.end_headers()
      with context.wrap_socket(self.connection, server_side=True) as inner:
        while b"\r\n\r\n" not in inner.recv(4096):
          pass
        body = b"not the archive"
        inner.sendall(
          b"HTTP/1.1 200 OK\r\nConnection: close\r\n"
          + f"Content-Length: {len(body)}\r\n\r\n".encode()
          + body
        )
      self.close_connection = True

    def log_message(self, format, *args):
      pass

  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  thread = threading.Thread(target=server.serve_forever)
  thread.start()
  yield f"http://127.0.0.1:{server.server_port}", folder / "certificate.pem"
  server.shutdown()
  server.server_close()
  thread.join()


def test_wrong_checksum_of_a_download(tmp_path, impostor):
  proxy, certificate = impostor
  cache = tmp_path / "cache"
  done = python(
    CIFAR10,
    f"--config.data.cache_dir={cache}",
    cwd=tmp_path,
    https_proxy=proxy,
    no_proxy="",
    SSL_CERT_FILE=str(certificate),
  )
  message = check_one_line(done.returncode, done.stdout, done.stderr)
  got = hashlib.sha256(b"not the archive").hexdigest()
  wanted = cifar.FORMATS["cifar10"].archive.sha256
  assert f"has SHA-256 {got}, expected {wanted}" in message
  assert [p.name for p in tmp_path.iterdir()] == ["cache"]
  assert [p.suffix for p in cache.iterdir()] == [".lock"]


def test_resuming_with_other_data(refused, tmp_path, capsys):
  folders = [make_cifar(tmp_path / name) for name in ("old", "new")]
  put(folders[1], "data_batch_1.bin", b"\x01", at=9, size=BATCH)  # one pixel
  command = [*MLP_ON_CIFAR, f"--workdir={tmp_path}/run"]
  own = f"--config.data.dir={folders[0]}"
  assert main.main(["main.py", *command, own, "--quiet"]) == 0
  capsys.readouterr()
  document = json.loads((tmp_path / "run/config.json").read_text())
  message = refused(*command, f"--config.data.dir={folders[1]}")
  hashes = re.search(r"SHA-256 is (\w{64}) there and (\w{64}) here", message)
  assert hashes
  assert hashes[1] == document["data_sha256"] != hashes[2]
  assert "--config.data.dir" in message


# --- The run directory -------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
  """The directory of a small run that has ended."""
  path = tmp_path_factory.mktemp("finished") / "run"
  command = ["main.py", *SMALL, f"--workdir={path}", "--quiet"]
  assert main.main(command) == 0
  return path


@pytest.fixture
def run(finished, tmp_path) -> Path:
  return Path(shutil.copytree(finished, tmp_path / "run"))


def test_workdir_of_another_config(refused, run):
  message = refused(*SMALL, f"--workdir={run}", "--config.train.epochs=2")
  assert "holds a run of another config: train.epochs is 1 there" in message
  assert str(run) in message


def test_control_in_the_workdir_of_another_config(refused, run, tmp_path):
  run.rename(tmp_path / "a-control")
  shutil.copytree(tmp_path / "a-control", tmp_path / "a")
  message = refused(*SMALL, f"--workdir={tmp_path}/a", "--control", "--quiet")
  assert f"{tmp_path}/a-control holds a run of another config" in message


def spoil_json(name: str, text: str) -> Callable[[Path], None]:
  def spoil(run: Path) -> None:
    (run / name).write_text(text)

  return spoil


def as_if_killed(run: Path) -> None:
  (run / "result.json").unlink()


def shorten_log(run: Path) -> None:
  as_if_killed(run)
  os.truncate(run / "events.jsonl", 0)


def change_log(run: Path) -> None:
  as_if_killed(run)
  log = run / "events.jsonl"
  log.write_bytes(log.read_bytes().replace(b"\n", b" ") + b"{}\n" * 99)


def age_checkpoints(run: Path) -> None:
  """As a later version would write them, every hash in order."""
  for document in run.glob("checkpoints/*/checkpoint.json"):
    was = hashlib.sha256(document.read_bytes()).hexdigest()
    content = json.loads(document.read_text())
    document.write_text(json.dumps({**content, "schema": 99}))
    now = hashlib.sha256(document.read_bytes()).hexdigest()
    sums = document.with_name("SHA256SUMS")
    sums.write_text(sums.read_text().replace(was, now))


@pytest.mark.parametrize(
  ("spoil", "says"),
  [
    (spoil_json("config.json", '{"config": {'), "config.json is not JSON"),
    (spoil_json("config.json", "[]"), "config.json is not a JSON object"),
    (spoil_json("config.json", "{}"), "so it is not a run's"),
    (spoil_json("result.json", "?"), "result.json is not JSON"),
    (age_checkpoints, "has checkpoint schema 99, this version reads 1"),
    (shorten_log, "events.jsonl has 0 bytes but the checkpoint was taken at"),
    (change_log, "events.jsonl: byte"),
  ],
)
def test_damaged_run(refused, run, spoil, says):
  spoil(run)
  message = refused(*SMALL, f"--workdir={run}")
  assert says in message
  assert "--workdir" in message


@pytest.mark.parametrize("name", ["config.json", "result.json"])
def test_folder_in_place_of_a_file(refused, run, name):
  (run / name).unlink()
  (run / name).mkdir()
  assert f"{name}: Is a directory" in refused(*SMALL, f"--workdir={run}")


def test_workdir_that_is_a_file(refused, tmp_path):
  (tmp_path / "file").write_text("mine")
  says = "is a file; choose another --workdir"
  assert says in refused(*SMALL, f"--workdir={tmp_path}/file")
  says = "cannot write"
  assert says in refused(*SMALL, f"--workdir={tmp_path}/file/run")


@pytest.mark.skipif(not os.path.exists("/proc/self"), reason="needs /proc")
def test_unwritable_workdir(refused):
  message = refused(*SMALL, "--workdir=/proc/self/run")
  assert "cannot write /proc/self/run" in message


@pytest.mark.skipif(
  os.geteuid() == 0, reason="root may write anywhere: run it as another user"
)
def test_workdir_without_permission(refused, tmp_path):
  (tmp_path / "run").mkdir(mode=0o500)
  assert "Permission denied" in refused(*SMALL, f"--workdir={tmp_path}/run")


@pytest.fixture
def tiny_disk(tmp_path):
  """A disk of 64 KiB; only root can make one."""
  path = tmp_path / "disk"
  path.mkdir()
  mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(path)]
  if (
    not shutil.which("mount")
    or subprocess.run(mount, capture_output=True).returncode
  ):
    pytest.skip("needs root: sudo -E make test")
  yield path
  subprocess.run(["umount", str(path)], check=True)


def test_full_disk(tmp_path, tiny_disk):
  workdir = tiny_disk / "run"
  done = python(*SMALL, f"--workdir={workdir}", cwd=tmp_path)
  message = check_one_line(done.returncode, done.stdout, done.stderr)
  assert f"cannot write {workdir}: No space left on device" in message
  assert [p.name for p in workdir.iterdir()] == [".lock"]


def test_workdir_in_use_by_a_live_process(tmp_path, capsys):
  workdir = tmp_path / "run"
  command = [*SMALL, f"--workdir={workdir}", "--quiet"]
  command += ["--config.train.max_steps=0", "--config.train.epochs=100000"]
  other = subprocess.Popen(
    [sys.executable, str(ROOT / "main.py"), *command], cwd=tmp_path
  )
  try:
    end = time.monotonic() + 120
    while not (workdir / "checkpoints").exists():
      assert other.poll() is None
      assert time.monotonic() < end
      time.sleep(0.1)
    code = main.main(["main.py", *command])
    message = check_one_line(code, *capsys.readouterr())
    assert f"{workdir} is in use by process {other.pid};" in message
    other.send_signal(signal.SIGTERM)
    assert other.wait(timeout=60) == 0  # unharmed
  finally:
    with contextlib.suppress(ProcessLookupError):
      other.kill()
    other.wait()
  result = json.loads((workdir / "result.json").read_text())
  assert result["status"] == "interrupted"


# --- The machine -------------------------------------------------------------


@pytest.mark.parametrize("extra", [[], ["--dry_run"]], ids=["train", "dry_run"])
def test_device_that_is_not_there(tmp_path, extra):
  done = python(*SMALL, *extra, cwd=tmp_path, JAX_PLATFORMS="abacus")
  message = check_one_line(done.returncode, done.stdout, done.stderr)
  assert "no device where JAX_PLATFORMS=abacus" in message
  assert list(tmp_path.iterdir()) == []
