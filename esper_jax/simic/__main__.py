"""`python -m esper_jax.simic`: trains and compares policies."""

import os
import sys

from esper_jax.simic import command_line


def _cores() -> int:
  ours = getattr(os, "sched_getaffinity", None)
  return len(ours(0)) if ours else os.cpu_count() or 1


if __name__ == "__main__":
  # Populations are played on all devices in equal parts: let cores be devices,
  # a power of two of them, which divides most populations. JAX reads this when
  # it is imported: by a command, not yet here.
  devices = 1 << _cores().bit_length() - 1
  os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(devices))
  sys.exit(command_line.main())
