"""Trains a network that grows: `python main.py --help`.

This file is intentionally short: flags and exit codes are in
`esper_jax/command_line.py`, the training loop in `esper_jax/tolaria`.
"""

import sys
from pathlib import Path

from esper_jax import command_line

CONFIGS = Path(__file__).parent / "configs"


def main(argv: list[str]) -> int:
  """Runs one command line and returns its exit code."""
  return command_line.run(argv, configs=CONFIGS)


if __name__ == "__main__":
  command_line.leave(main(sys.argv))
