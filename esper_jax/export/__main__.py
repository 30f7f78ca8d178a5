"""`python -m esper_jax.export`: takes a grown network home."""

import sys

from esper_jax.export import command_line

if __name__ == "__main__":
  sys.exit(command_line.main())
