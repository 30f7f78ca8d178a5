"""`python -m esper_jax.nissa`: shows what happened in runs."""

import sys

from esper_jax.nissa import command_line

if __name__ == "__main__":
  sys.exit(command_line.main())
