"""`python -m esper_jax.urza`: looks after the registry; see `cli`."""

import sys

from esper_jax.urza import cli

if __name__ == "__main__":
  sys.exit(cli.main())
