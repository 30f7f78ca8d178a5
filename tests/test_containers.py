"""The container files are valid and keep their promises; nothing is built."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
TRAINS = ("train", "train-cuda")


def stages():
  """Target of the Dockerfile -> (what it is made from, its instructions)."""
  text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.M)
  _, *parts = re.split(r"^FROM ", text, flags=re.M)
  found = {}
  for part in parts:
    head, *lines = part.splitlines()
    base, name = re.fullmatch(r"(\S+) AS (\S+)", head).groups()
    found[name] = base, [line for line in lines if line]
  return found


def instructions(target):
  """All that lead to an image, the first first."""
  base, lines = stages()[target]
  return [*instructions(base), *lines] if base in stages() else lines


def check(*command):
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(
  sys.platform != "linux", reason="hadolint is for Linux here"
)
def test_the_dockerfile_passes_its_linter():
  check(BIN / "hadolint", "Dockerfile")


def test_compose_keeps_to_the_schema():
  schema = ("--builtin-schema", "vendor.compose-spec")
  check(BIN / "check-jsonschema", *schema, "compose.yaml")


def test_every_image_is_official_pinned_and_on_no_other_registry():
  outside = [base for base, _ in stages().values() if base not in stages()]
  named = [s["image"] for s in SERVICES.values() if "build" not in s]
  for image in (*outside, *named):
    assert re.fullmatch(r"[a-z]+:[0-9][a-z0-9.-]*", image)
  built = [s["build"]["target"] for s in SERVICES.values() if "build" in s]
  assert sorted(built) == ["cpu", "cuda", "tensorboard"]
  assert set(built) < set(stages())
  assert list(stages())[-1] == "cpu"  # built where no target is named


@pytest.mark.parametrize("target", ["cpu", "cuda", "tensorboard"])
def test_an_image_runs_as_a_user_and_installs_what_was_tested(target):
  lines = instructions(target)
  assert [x for x in lines if x.startswith("USER")][-1] == "USER 1000"
  installs = [line for line in lines if "pip install" in line]
  assert installs
  for line in installs:
    assert "--constraint constraints-py312.txt" in line
  assert ("[cuda12]" in installs[-1]) == (target == "cuda")
  assert not [line for line in lines if "--mount" in line or "://" in line]


def test_what_the_images_copy_is_there_and_sent_to_the_engine():
  copied = set()
  for _, lines in stages().values():
    for line in lines:
      if line.startswith("COPY"):
        copied.update(line.split()[1:-1])
  ignore = (ROOT / ".dockerignore").read_text().splitlines()
  assert "*" in ignore
  assert copied == {line[1:] for line in ignore if line.startswith("!")}
  assert all((ROOT / name).exists() for name in copied)


def test_up_starts_redis_and_tensorboard_alone():
  started = {name for name, s in SERVICES.items() if "profiles" not in s}
  assert started == {"redis", "tensorboard"}
  for name in TRAINS:
    assert SERVICES[name]["depends_on"] == {
      "redis": {"condition": "service_healthy"}
    }


def test_every_service_is_asked_how_it_is():
  for service in SERVICES.values():
    health = service["healthcheck"]
    keys = {"test", "interval", "timeout", "start_period", "retries"}
    assert set(health) == keys
  for name in TRAINS:
    service = SERVICES[name]
    (run,) = (
      word.removeprefix("--workdir=")
      for word in service["entrypoint"]
      if word.startswith("--workdir=")
    )
    doctor = f"python -m esper_jax.doctor {run} || exit 1"
    assert service["healthcheck"]["test"] == doctor
    assert "--config.oona.redis_url=redis://redis:6379" in service["entrypoint"]


def test_ports_are_open_to_this_machine_alone():
  ports = {name: s["ports"] for name, s in SERVICES.items() if "ports" in s}
  assert ports == {
    "redis": ["127.0.0.1:6379:6379"],
    "tensorboard": ["127.0.0.1:6006:6006"],
  }


def test_runs_lie_in_a_folder_of_the_user():
  for name in (*TRAINS, "tensorboard"):
    service = SERVICES[name]
    assert service["user"] == "${ESPER_USER:-1000:1000}"
    *rest, runs = service["volumes"]
    assert rest == ([] if name == "tensorboard" else ["cache:/cache"])
    assert runs["target"] == "/esper/runs"
    assert not runs["bind"]["create_host_path"]
  assert SERVICES["redis"]["volumes"] == ["redis:/data"]
  assert set(COMPOSE["volumes"]) == {"cache", "redis"}


# --- .ci/containers -----------------------------------------------------------


def run_job(folder, docker):
  """Runs the job where `docker` is this shell script, which notes its calls."""
  program = folder / "docker"
  calls = folder / "calls"
  program.write_text(f'#!/bin/sh\necho "$*" >>{calls}\n{docker}\n')
  program.chmod(0o755)
  (folder / "tmp").mkdir()
  done = subprocess.run(
    [ROOT / ".ci" / "containers", BIN],
    env=os.environ
    | {"PATH": f"{folder}:{os.environ['PATH']}", "TMPDIR": f"{folder}/tmp"},
    capture_output=True,
    text=True,
  )
  return done, calls.read_text().splitlines()


def test_without_an_engine_the_job_says_so_and_passes(tmp_path):
  done, calls = run_job(tmp_path, "exit 1")
  assert (done.returncode, done.stderr) == (0, "")
  assert re.fullmatch(r"no engine: .*\n", done.stdout)
  assert calls == ["info"]


def test_a_build_that_fails_fails_the_job_which_cleans_up(tmp_path):
  done, calls = run_job(tmp_path, '[ "$*" != "compose build" ]')
  assert done.returncode == 1
  build = calls.index("compose build")
  assert calls[build + 1 :] == [
    "rm --force esper-check-long",
    "compose down --volumes --remove-orphans",
  ]
  assert not list((tmp_path / "tmp").iterdir())
