"""`python -m esper_jax.simic`: trains and compares policies."""

import os
import sys

# Populations are played on all devices (`rollout.population`): let every core
# be one. JAX reads this when it is imported.
os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(os.cpu_count() or 1))

from esper_jax.simic import command_line

if __name__ == "__main__":
  sys.exit(command_line.main())
