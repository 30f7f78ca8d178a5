"""`python -m esper_jax.simic`: trains and compares policies."""

import sys

from esper_jax.simic import command_line

if __name__ == "__main__":
  sys.exit(command_line.main())
