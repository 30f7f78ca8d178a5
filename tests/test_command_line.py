"""The command line up to where training begins."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import main
from esper_jax import command_line, commands, usage
from esper_jax import config as config_lib
from esper_jax.nissa import table
from esper_jax.types import InputError

ROOT = Path(__file__).parents[1]
DIGITS = f"--config={ROOT}/configs/digits.py"


def parse(*arguments: str) -> command_line.Options:
  options = command_line.parse(["main.py", *arguments])
  assert options is not None
  return options


def refusal(*arguments: str) -> str:
  with pytest.raises(InputError) as caught:
    command_line.parse(["main.py", *arguments])
  return str(caught.value)


def test_defaults():
  options = parse(DIGITS)
  assert options.workdir == os.path.join("runs", "digits")
  assert not options.dry_run
  assert not options.control
  assert options.verbosity == 1
  assert options.config.data.name == "digits"
  assert options.config.is_locked


def test_profile_and_flags():
  options = parse(f"{DIGITS}:smoke", "--dry_run", "--verbose")
  assert options.workdir == os.path.join("runs", "digits-smoke")
  assert options.dry_run
  assert options.verbosity == 2
  assert options.config.train.max_steps == 2
  assert parse(DIGITS, "--quiet").verbosity == 0
  assert parse(DIGITS, "--workdir", "runs/a b").workdir == "runs/a b"


@pytest.mark.parametrize(
  ("argument", "key", "value"),
  [
    ("--config.train.epochs=7", "train.epochs", 7),
    ("--config.optimizer.learning_rate=1", "optimizer.learning_rate", 1.0),
    ("--config.optimizer.learning_rate=3e-4", "optimizer.learning_rate", 3e-4),
    ("--config.deterministic", "deterministic", True),
    ("--noconfig.data.download", "data.download", False),
    ("--config.data.download=False", "data.download", False),
    ("--config.data.dir=/a,b c", "data.dir", "/a,b c"),
    ("--config.host.slots=all", "host.slots", "all"),
    ("--config.host.slots=slot1_1", "host.slots", ("slot1_1",)),
    (
      "--config.host.slots=slot1_1,slot2_1",
      "host.slots",
      ("slot1_1", "slot2_1"),
    ),
    ("--config.host.slots=('slot1_1',)", "host.slots", ("slot1_1",)),
    ("--config.host.slots=()", "host.slots", ()),
    ("--config.data.augment=none", "data.augment", ()),
    ("--config.data.augment=crop,flip", "data.augment", ("crop", "flip")),
    ("--config.kasmina.blueprints=norm", "kasmina.blueprints", ("norm",)),
    (
      "--config.kasmina.blueprints=norm,se",
      "kasmina.blueprints",
      ("norm", "se"),
    ),
    ("--config.host.inner_widths=0,1,0", "host.inner_widths", (0, 1, 0)),
    ("--config.nissa.profile_steps=10,20", "nissa.profile_steps", (10, 20)),
    ("--config.nissa.profile_steps=()", "nissa.profile_steps", ()),
    (
      "--config.tamiyo.schedule=((3,'slot1_1','norm'),)",
      "tamiyo.schedule",
      ((3, "slot1_1", "norm"),),
    ),
  ],
)
@pytest.mark.parametrize("override_first", [False, True])
def test_override(argument, key, value, override_first):
  arguments = [argument, DIGITS] if override_first else [DIGITS, argument]
  section, _, name = key.rpartition(".")
  config = parse(*arguments).config
  found = (config[section] if section else config)[name]
  assert found == value
  assert type(found) is type(value)


RECORDED = f"{ROOT}/tests/integration/recorded/slot1.jsonl"


def test_replay_flags_set_keys():
  t = parse(DIGITS).config.tamiyo
  assert (t.policy, t.replay) == ("learned", "")
  t = parse(DIGITS, f"--replay={RECORDED}").config.tamiyo
  assert (t.policy, t.replay) == ("replay", RECORDED)
  assert (t.replay_permute, t.replay_seed, t.replay_final) == ("", 0, False)
  more = ("--replay_permute=slots", "--replay_seed", "3", "--replay_final")
  t = parse(DIGITS, f"--replay={RECORDED}", *more).config.tamiyo
  assert (t.replay_permute, t.replay_seed, t.replay_final) == ("slots", 3, True)
  keys = ("--config.tamiyo.replay_final=True", "--config.tamiyo.policy=replay")
  own = f"--config.tamiyo.replay={RECORDED}"
  t = parse(DIGITS, own, *keys, "--noreplay_final").config.tamiyo
  assert (t.policy, t.replay, t.replay_final) == ("replay", RECORDED, False)


def test_override_in_two_arguments_and_twice():
  config = parse(DIGITS, "--config.seed", "3", "--config.seed=4").config
  assert config.seed == 4


@pytest.mark.parametrize(
  ("arguments", "says"),
  [
    ([], "--config is missing; try --config=configs/digits.py, or --help"),
    (["--config"], "Missing value for flag --config"),
    (["--config="], "--config is missing; try"),
    (
      [DIGITS, "--wrkdir=a"],
      "--wrkdir: no such flag; the nearest is --workdir",
    ),
    (["--x"], "--x: no such flag"),
    (
      [DIGITS, "extra"],
      "stray argument: extra; flags are written --name=value",
    ),
    ([DIGITS, "-"], "stray argument: -"),
    ([DIGITS, "--quiet", "--verbose"], "--quiet and --verbose exclude each"),
    ([DIGITS, "--quiet=maybe"], "flag --quiet=maybe: "),
    ([DIGITS, "--noquiet=1"], "--noquiet=1 does not take an argument"),
    (
      [f"{DIGITS}:tpu"],
      "no such profile: tpu; the profiles are gpu, cpu, smoke",
    ),
    ([f"{DIGITS}x"], "no such file; the nearest is"),
    ([DIGITS, "--config.epochs=3"], "the nearest is --config.train.epochs"),
    ([DIGITS, "--config.train={}"], "--config.train is a section"),
    ([DIGITS, "--config.seed"], "Missing value for flag --config.seed"),
    (
      [DIGITS, "--config.train.epochs=3.5"],
      "--config.train.epochs=3.5: must be an integer of at least 1",
    ),
    (
      [DIGITS, "--config.optimizer.b2=much"],
      "--config.optimizer.b2=much: must be a number in [0, 1)",
    ),
    (
      [DIGITS, "--config.data.download=maybe"],
      "--config.data.download=maybe: must be True or False",
    ),
    (
      [DIGITS, "--config.nissa.profile_steps=20,10"],
      "--config.nissa.profile_steps=(20, 10): must be two steps, the first the"
      " lower, such as 10,20, or ()",
    ),
    (
      [DIGITS, "--config.host.inner_widths=0 1"],
      "--config.host.inner_widths=0 1: must be integers of at least 0",
    ),
    ([DIGITS, "--config.train.epochs=0"], "must be an integer of at least 1"),
    (
      [DIGITS, "--config.host.name=given"],
      "is what esper_jax.grow sets, from Python; here it must be one of res",
    ),
  ],
)
def test_bad_input_is_one_line(arguments, says):
  message = refusal(*arguments)
  assert says in message
  assert "\n" not in message


def test_config_that_lacks_a_key_is_refused_before_it_is_changed(tmp_path):
  path = tmp_path / "c.py"
  path.write_text(
    "from configs import base\n"
    "def get_config():\n"
    "  config = base.get_config()\n"
    "  del config['seed']\n"
    "  return config\n"
  )
  assert "config.seed is missing" in refusal(
    f"--config={path}", "--config.seed=1"
  )


def test_bad_input_exits_with_2_and_writes_nothing(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.chdir(tmp_path)
  assert main.main(["main.py", DIGITS, "--config.seed=x"]) == 2
  out, err = capsys.readouterr()
  assert out == ""
  assert (
    err == "error: --config.seed=x: must be an integer from 0 to 2147483647\n"
  )
  assert list(tmp_path.iterdir()) == []


def test_interrupt_before_training_exits_with_0(tmp_path, capsys):
  path = tmp_path / "c.py"
  path.write_text("raise KeyboardInterrupt")
  assert main.main(["main.py", f"--config={path}"]) == 0
  assert "interrupted before anything was started" in capsys.readouterr().err


def test_help_lists_everything(monkeypatch, capsys):
  monkeypatch.chdir(ROOT)
  assert main.main(["main.py", "--help"]) == 0
  text = capsys.readouterr().out
  assert all(len(line) <= 80 for line in text.splitlines())
  switches = ("replay_final", "dry_run", "control", "distributed")
  switches += ("verbose", "quiet", "help")
  for flag in ("config", "workdir", *usage.REPLAY, *switches):
    assert f"\n  --{flag}" in text
  assert text.count("(default: ") == 1 + len(switches)
  assert "(required)" in text
  for name in ("digits", "cifar10", "cifar100", "char_gpt", "folder"):
    assert f"\n  configs/{name}.py\n" in text
  assert "base.py\n" not in text
  assert text.count("      :smoke ") == 5
  assert "\n  0  the run completed" in text
  examples = text.partition("Examples:")[2].replace("\\\n", "")
  commands = [
    " ".join(line.split())
    for line in examples.splitlines()
    if line.startswith("  .venv/bin/python main.py")
  ]
  assert commands == [
    f".venv/bin/python main.py {a}" for _, a in usage.EXAMPLES
  ]
  assert len(commands) == 7


def test_the_command_that_resumes_names_the_directory(monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  flags = ["--config=a.py", "--workdir", "old", "--config.data.augment=a,b c"]
  told = command_line.resuming(["main.py", *flags], "runs/a")
  assert told == (
    f"{commands.python()} main.py --config=a.py '--config.data.augment=a,b c'"
    " --workdir=runs/a"
  )
  program = str(tmp_path / "main.py")
  told = command_line.resuming([program, "--workdir=x", "--control"], "x")
  assert told.endswith(" main.py --control --workdir=x")


def test_every_example_parses(monkeypatch):
  monkeypatch.chdir(ROOT)
  for _, arguments in usage.EXAMPLES:
    parse(*arguments.split())
    parse(*arguments.replace(".py", ".py:smoke").split())


def test_help_and_bad_input_answer_without_jax():
  code = (
    "import sys, main\n"
    "main.main(['main.py', '--help'])\n"
    "main.main(['main.py', '--config=configs/digits.py', '--config.seed=x'])\n"
    "sys.exit('jax' in sys.modules)\n"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], cwd=ROOT, capture_output=True
  )
  assert done.returncode == 0, done.stderr.decode()


def test_output_that_nobody_reads_is_no_error():
  help_into_head = (
    f"{sys.executable} main.py --help | true; echo ${{PIPESTATUS[0]}}"
  )
  done = subprocess.run(
    ["bash", "-c", help_into_head], cwd=ROOT, capture_output=True, text=True
  )
  assert (done.stdout, done.stderr) == ("0\n", "")


def test_main_is_a_script(monkeypatch, capsys):
  monkeypatch.chdir(ROOT)
  monkeypatch.setattr(sys, "argv", ["main.py", "--config=nothing.py"])
  with pytest.raises(SystemExit) as caught:
    runpy.run_path("main.py", run_name="__main__")
  assert caught.value.code == 2
  assert capsys.readouterr().err == (
    "error: --config=nothing.py: no such file; the nearest is main.py\n"
  )


def test_slow_run_on_a_cpu_is_pointed_to_its_profile(tmp_path):
  path = f"{ROOT}/configs/cifar10.py"
  assert command_line.slow_hint(path, "cpu").endswith(
    f"--config={path}:cpu is meant for it"
  )
  assert command_line.slow_hint(path, "gpu") == ""
  assert command_line.slow_hint(f"{path}:cpu", "cpu") == ""
  own = tmp_path / "own.py"
  own.write_text("")
  assert command_line.slow_hint(str(own), "cpu") == ""


def test_training_beside_a_control_and_again(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  arguments = ["main.py", f"{DIGITS}:smoke"]
  assert main.main([*arguments, "--control"]) == 0
  out = capsys.readouterr().out
  assert "runs/digits-smoke" in out
  assert "grown" in out
  assert "never grown" in out
  results = [
    json.loads((tmp_path / f"runs/{name}/result.json").read_text())
    for name in ("digits-smoke", "digits-smoke-control")
  ]
  for result in results:
    assert result["status"] == "completed"
    assert result["steps"] == 2
  assert results[0]["config_hash"] != results[1]["config_hash"]
  # The same command again shows the result and trains nothing.
  assert main.main(arguments) == 0
  assert "never grown" not in capsys.readouterr().out
  assert main.main([*arguments, "--control", "--quiet"]) == 0
  assert capsys.readouterr().out == ""


def test_failed_run_exits_with_1(tmp_path, capsys):
  arguments = [
    f"{DIGITS}:smoke",
    f"--workdir={tmp_path}/run",
    "--quiet",
    "--config.optimizer.name=sgd",
    "--config.optimizer.learning_rate=1e30",
    "--config.governor.max_rollbacks=0",
    "--config.train.max_steps=8",
  ]
  assert main.main(["main.py", *arguments]) == 1
  out, err = capsys.readouterr()
  assert out == ""
  assert err.startswith("failed: ")
  assert err.count("\n") == 1


def test_dry_run_shows_the_slots_and_writes_nothing(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.chdir(tmp_path)
  arguments = [f"{DIGITS}:smoke", "--dry_run", "--config.host.slots=slot1_1"]
  assert main.main(["main.py", *arguments]) == 0
  out = capsys.readouterr().out
  assert out.splitlines()[0].split() == [
    "slot",
    "shape",
    "kind",
    "blueprint",
    "parameters",
    "FLOPs/example",
  ]
  assert "slot1_1" in out
  assert "slot2_1" not in out
  hashed = config_lib.config_hash(parse(*arguments).config)[:8]
  assert out.splitlines()[-1] == f"config {hashed} is valid"
  assert list(tmp_path.iterdir()) == []


def test_slot_table_text():
  rows = [
    {
      "name": "slot1_1",
      "shape": (8, 8, 16),
      "kind": "nhwc",
      "blueprints": [("conv3x3", 4640, 590000), ("norm", 32, 2048.0)],
    },
    {"name": "slot9", "shape": (2,), "kind": "features", "blueprints": []},
  ]
  assert table.format_slots(rows).splitlines() == [
    "slot     shape   kind      blueprint  parameters  FLOPs/example",
    "slot1_1  8x8x16  nhwc      conv3x3         4,640        590,000",
    "                           norm               32          2,048",
    "slot9    2       features  none fits           0              0",
  ]
  assert "no slots" in table.format_slots([])
