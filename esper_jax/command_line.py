"""The command line: flags in, exit code out.

JAX is imported only once the flags and the config are known to be good, so
that --help and a typing error answer at once.
"""

import contextlib
import dataclasses
import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import flags
from ml_collections import ConfigDict, config_flags

from esper_jax import commands, config_file
from esper_jax import config as config_lib
from esper_jax.commands import BAD_INPUT, FAILED, OK
from esper_jax.control import never_grown
from esper_jax.knobs import GIVEN, KNOBS, nearest
from esper_jax.tezzeret import workers
from esper_jax.types import InputError, RunFailedError
from esper_jax.usage import REPLAY, define_flags, help_text


@dataclasses.dataclass(frozen=True)
class Options:
  """A checked command line.

  Attributes:
    source: the value of --config.
    config: validated and locked.
    workdir: the run directory.
    dry_run: show the slots instead of training.
    control: train a never-grown control as well.
    distributed: be one of several processes.
    verbosity: 0 quiet, 1 normal, 2 verbose.
    argv: the command line.
  """

  source: str
  config: ConfigDict
  workdir: str
  dry_run: bool
  control: bool
  distributed: bool
  verbosity: int
  argv: tuple[str, ...]


def parse(argv: list[str]) -> Options | None:
  """Reads a command line; None means that help was asked for.

  Args:
    argv: as `sys.argv`, the program's name first.

  Raises:
    InputError: one line on what is wrong and what is valid.
  """
  values = define_flags()
  with _absl_errors():
    rest = values(argv, known_only=True)
  if values.help:
    return None
  if values.quiet and values.verbose:
    raise InputError("--quiet and --verbose exclude each other; give one")
  config_lib.check_keys(_overridden_keys(rest, tuple(values)))
  if not values.config:
    raise InputError(
      "--config is missing; try --config=configs/digits.py, or --help"
    )
  config = config_file.load(values.config)
  config_lib.check_complete(config)
  config = _override(config, rest)
  if values.replay is not None:
    config.tamiyo.policy = "replay"
  for name in REPLAY:
    if values[name].present:
      config.tamiyo[name] = values[name].value
  _refuse_given(config_lib.flatten(config))
  config = config_lib.validate(config)
  path, profile = config_file.split_profile(values.config)
  name = "-".join(filter(None, (Path(path).stem, profile)))
  return Options(
    source=values.config,
    config=config,
    workdir=values.workdir or os.path.join("runs", name),
    dry_run=values.dry_run,
    control=values.control,
    distributed=values.distributed,
    verbosity=0 if values.quiet else 2 if values.verbose else 1,
    argv=tuple(argv),
  )


def _refuse_given(flat: Mapping[str, Any]) -> None:
  for key in ("host.name", "data.source", "tamiyo.policy"):
    if flat[key] == GIVEN:
      raise InputError(
        f"--config.{key}={GIVEN} is what esper_jax.grow sets, from Python; here"
        f" it must be {KNOBS[key].valid}"
      )


def resuming(argv: Sequence[str], workdir: str) -> str:
  """The command line that takes a run up again.

  Args:
    argv: as `parse` takes it.
    workdir: of the run; named even where the first command did not.
  """
  program, *rest = argv
  kept, skip = [], False
  for arg in rest:
    flag = arg.lstrip("-").partition("=")
    if not skip and flag[0] != "workdir":
      kept.append(arg)
    skip = not skip and flag[0] == "workdir" and not flag[1]
  program = os.path.relpath(program)
  return shlex.join([commands.python(), program, *kept, f"--workdir={workdir}"])


def _overridden_keys(args: list[str], known: tuple[str, ...]) -> list[str]:
  """The keys in flags of the form --config.key; any other flag is refused."""
  keys = []
  for arg in args[1:]:
    name = arg.lstrip("-").partition("=")[0]
    override = re.fullmatch(r"(?:no)?config\.(.+)", name)
    if not arg.startswith("-") or not name:
      continue
    if not override:
      raise InputError(
        f"--{name}: no such flag; the nearest is --{nearest(name, known)}"
      )
    keys.append(override[1])
  return keys


_FROM = '--config.host["from"]'


def _override(config: ConfigDict, args: list[str]) -> ConfigDict:
  """Applies --config.key=value flags; every key must exist."""
  # Keys are read as Python, in which `from` is a keyword.
  args = [re.sub(r"^--?config\.host\.from\b", _FROM, arg) for arg in args]
  values = flags.FlagValues()
  values.set_gnu_getopt(True)
  with _absl_errors():
    config_flags.DEFINE_config_dict(
      "config", config, flag_values=values, sys_argv=args
    )
    stray = values(args)[1:]
  if stray:
    raise InputError(
      f"stray argument: {stray[0]}; flags are written --name=value"
    )
  return values.config


@contextlib.contextmanager
def _absl_errors() -> Iterator[None]:
  """Turns the errors of the flag libraries into one line of ours."""
  try:
    yield
  except (flags.Error, ValueError) as error:
    message = " ".join(str(error).split())
    value = re.match(r"flag --config\.([\w.]+)=(.*?): ", message)
    if value and value[1] in KNOBS:
      message = (
        f"--config.{value[1]}={value[2]}: must be {KNOBS[value[1]].valid}"
      )
    raise InputError(message) from error


def run(argv: list[str], *, configs: Path) -> int:
  """Runs one command line.

  Args:
    argv: as `sys.argv`, the program's name first.
    configs: folder of the config files that --help lists.

  Returns:
    The exit code: OK, FAILED or BAD_INPUT. An error that is neither bad input
    nor a failed run is a bug and passes through with its traceback.
  """
  try:
    options = parse(argv)
    if options is None:
      _write(help_text(configs))
    elif options.dry_run:
      _show_slots(options.config)
    else:
      _train(options)
    return OK
  except InputError as error:
    print(f"error: {error}", file=sys.stderr)
    return BAD_INPUT
  except KeyboardInterrupt:  # a started run ends in its own way
    print("interrupted before anything was started", file=sys.stderr)
    return OK
  except RunFailedError as error:
    print(f"failed: {error}", file=sys.stderr)
    return FAILED
  finally:
    _write("")  # or what the console left behind is an error at exit


def leave(code: int) -> NoReturn:
  """Ends the process with an exit code; no compilation holds it up."""
  workers.leave(code)


def _write(text: str) -> None:
  """Writes to standard output; what nobody reads any more is dropped."""
  try:
    sys.stdout.write(text)
    sys.stdout.flush()
  except OSError:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _backend() -> str:
  """The kind of device that JAX will use: "cpu", "gpu", ..."""
  import jax  # here, not above: seconds

  try:
    return jax.default_backend()
  except Exception as error:  # JAX raises several kinds, one without words
    reason = (str(error).splitlines() or ["it cannot be used"])[0]
    raise InputError(
      "JAX finds no device where JAX_PLATFORMS="
      f"{os.environ.get('JAX_PLATFORMS', '')}: {reason}; set it to cpu, or"
      " unset it"
    ) from error


def _join() -> bool:
  """Joins the processes of a run; tells whether this one leads."""
  from esper_jax.tolaria import processes

  processes.start()
  return processes.leads()


def _train(options: Options) -> None:
  leads = not options.distributed or _join()
  backend = _backend()
  from esper_jax.nissa import displays
  from esper_jax.nissa.table import result_table
  from esper_jax.tolaria.stopping import Stopping
  from esper_jax.tolaria.trainer import Trainer

  hint = slow_hint(options.source, backend)
  stopping = Stopping()

  def train(config: ConfigDict, workdir: str) -> dict[str, Any]:
    shown = displays.of_run(
      workdir,
      verbosity=options.verbosity if leads else 0,
      settings=config_lib.flatten(config),
      hint=hint,
      command=resuming(options.argv, options.workdir),
      **(config_lib.shown(config) if leads else {"report": False}),
    )
    return Trainer(
      config,
      workdir,
      display=shown,
      callbacks=shown.callbacks,
      stopping=stopping,
    ).train()

  # From here on: a signal during the long start also ends in order.
  with stopping.signals():
    grown = train(options.config, options.workdir)
    if not options.control or stopping.requested:
      return
    # Same seed, data order, schedule, epochs and batch; only Tamiyo differs.
    control = train(
      never_grown(options.config),
      f"{os.path.normpath(options.workdir)}-control",
    )
  if options.verbosity and leads and control["status"] == "completed":
    _write(f"\n{result_table({'grown': grown, 'never grown': control})}\n")


def slow_hint(source: str, backend: str) -> str:
  """Returns what to try where a run is slow; empty where nothing is known.

  Args:
    source: the value of --config.
    backend: that of JAX: "cpu", "gpu", ...
  """
  path, profile = config_file.split_profile(source)
  profiles = config_file.describe(Path(path)).profiles
  if backend != "cpu" or profile == "cpu" or "cpu" not in profiles:
    return ""
  return f"this is a CPU: --config={path}:cpu is meant for it"


def _show_slots(config: ConfigDict) -> None:
  _backend()
  from esper_jax.nissa.table import format_slots
  from esper_jax.tolaria.overview import slot_table  # imports JAX

  _write(
    f"{format_slots(slot_table(config))}\n"
    f"config {config_lib.config_hash(config)[:8]} is valid\n"
  )
