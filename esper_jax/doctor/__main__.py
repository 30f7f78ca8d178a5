"""`python -m esper_jax.doctor`: says what is wrong here, and what to do."""

import os
import sys

from esper_jax.doctor import command_line

if __name__ == "__main__":
  # JAX reads these when it is imported: by a check, not yet here. Nothing is
  # left on the disk, and a run beside this one keeps the device's memory.
  os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
  os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
  sys.exit(command_line.main())
