"""What main.py takes, and what its --help says."""

import os
from pathlib import Path

from absl import flags

from esper_jax import config_file

# Flags that set the key of tamiyo that has their name.
REPLAY = ("replay", "replay_permute", "replay_seed", "replay_final")

_HELP = """\
Train a neural network that grows while it trains.

  .venv/bin/python main.py --config=FILE[:PROFILE] \\
      [--config.SECTION.KEY=VALUE ...]

Running the same command again resumes the run, or shows its result.

Flags:
{flags}
  --config.SECTION.KEY=VALUE
      change one key of the config; esper_jax/defaults.py lists all

Configs and profiles:
{configs}

Exit codes:
  0  the run completed, or was interrupted and can be resumed
  1  the run failed
  2  bad input: nothing was started
  130, 143  a second signal ended it at once; the last checkpoint is whole

Examples:
{examples}
"""
# (what it shows, the arguments after ".venv/bin/python main.py").
EXAMPLES = (
  ("train", "--config=configs/digits.py"),
  ("resume: the same command again", "--config=configs/digits.py"),
  (
    "another host and length",
    "--config=configs/cifar10.py --workdir=runs/cifar10-50"
    " --config.host.name=resnet18 --config.train.epochs=50",
  ),
  (
    "check the config and show the slots",
    "--config=configs/cifar10.py --dry_run",
  ),
  (
    "never grow",
    "--config=configs/digits.py --workdir=runs/digits-never"
    " --config.tamiyo.policy=never",
  ),
  (
    "your own data folder",
    "--config=configs/cifar10.py --workdir=runs/cifar10-own"
    " --config.data.dir=data/cifar-10-batches-bin",
  ),
  (
    "your own images: a folder per class",
    "--config=configs/folder.py --workdir=runs/own-images"
    " --config.data.source=folder:data/images --config.data.image_size=8",
  ),
)


def define_flags() -> flags.FlagValues:
  """The flags beside --config.SECTION.KEY=VALUE, unset."""
  values = flags.FlagValues()
  values.set_gnu_getopt(True)
  flags.DEFINE_string(
    "config",
    None,
    "config file, with a profile after a colon (required)",
    flag_values=values,
  )
  flags.DEFINE_string(
    "workdir",
    None,
    "run directory (default: runs/NAME of the config, or runs/NAME-PROFILE)",
    flag_values=values,
  )
  for name, text in (
    (
      "replay",
      "enact the growth of another run: its events.jsonl; no policy is asked",
    ),
    ("replay_permute", "slots or times: draw these of it at random, a control"),
  ):
    flags.DEFINE_string(name, None, text, flag_values=values)
  flags.DEFINE_integer(
    "replay_seed", None, "of that draw, an integer", flag_values=values
  )
  for name, text in (
    ("replay_final", "have its final network from the start, and no growth"),
    ("dry_run", "check the config, show the host's slots, train nothing"),
    ("control", "then train the same run without growth, and compare"),
    ("distributed", "be one of the processes that train one network"),
    ("verbose", "print more: every event, compilations and checkpoints too"),
    ("quiet", "print errors only"),
    ("help", "print this"),
  ):
    flags.DEFINE_boolean(
      name, False, f"{text} (default: false)", flag_values=values
    )
  return values


def help_text(configs: Path) -> str:
  """Returns what --help prints.

  Args:
    configs: folder of the config files.
  """
  values = define_flags()
  listed = []
  for name in (
    "config",
    "workdir",
    *REPLAY,
    "dry_run",
    "control",
    "distributed",
    "verbose",
    "quiet",
    "help",
  ):
    form = f"--{name}" if values[name].boolean else f"--{name}=..."
    listed.append(f"  {form}\n      {values[name].help}")
  files = []
  for path in sorted(configs.glob("*.py")):
    summary, profiles = config_file.describe(path)
    if not profiles:  # base.py: edited by the others, not run itself
      continue
    files.append(f"  {os.path.relpath(path)}\n      {summary}")
    files += [f"      :{name:7} {line}" for name, line in profiles.items()]
  examples = [
    f"  # {what}\n"
    + "  .venv/bin/python main.py "
    + " \\\n      ".join(arguments.split())
    for what, arguments in EXAMPLES
  ]
  return _HELP.format(
    flags="\n".join(listed),
    configs="\n".join(files),
    examples="\n".join(examples),
  )
