"""What a run is made of, part by part, in the order in which they start."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from esper_jax.oona.bus import Bus
from esper_jax.tezzeret import disk
from esper_jax.tezzeret.program import Compiled
from esper_jax.tolaria import assembly, policy_fallback, processes, recovery
from esper_jax.tolaria.assembly import Parts
from esper_jax.tolaria.following import open_store
from esper_jax.tolaria.given import Given
from esper_jax.tolaria.growth import Growth
from esper_jax.tolaria.kernels import Kernels
from esper_jax.tolaria.profile import Profile
from esper_jax.tolaria.programs import Programs
from esper_jax.tolaria.roster import Roster
from esper_jax.tolaria.run import Run
from esper_jax.tolaria.store import Store


class Started(NamedTuple):
  """The parts of a run before its first step.

  Attributes:
    kernels: what may run in place of references.
    parts: what the config names.
    programs: of the network.
    growth: Tamiyo's place in the loop.
    fresh: a new run.
    store: what is on the disk.
  """

  kernels: Kernels
  parts: Parts
  programs: Programs
  growth: Growth
  fresh: Run
  store: Store


def start(
  roster: Roster,
  config: ConfigDict,
  workdir: str | Path,
  *,
  bus: Bus,
  kernels: Kernels | None,
  given: Given,
  run: Callable[[], Run],
  stopping: Callable[[], bool],
  on_compile: Callable[[Compiled], None],
  on_use: Callable[[float], None],
) -> Started:
  """Starts the parts of a run; where one fails, those before it are stopped.

  Args:
    roster: knows them from now on.
    config: validated.
    workdir: the run directory.
    bus: of the run.
    kernels: what may run in place of references; None: as the config says.
    given: in place of what the config names.
    run: the run, once it is under way.
    stopping, on_compile, on_use: see `Programs`.

  Raises:
    InputError: the config, the data or the directory is not usable.
  """
  roster.start("oona", lambda: bus)
  disk.enable(config.tezzeret.cache_dir)
  kernels = roster.start(
    "urza", lambda: kernels or Kernels.of(config), stop=Kernels.close
  )
  data = roster.start("data", lambda: assembly.load_data(config, given))
  parts = roster.start(
    "kasmina", lambda: assembly.assemble(config, data, given)
  )
  traced = config.nissa.profile_steps if processes.leads() else ()
  profile = Profile(traced, workdir)
  programs = roster.start(
    "tezzeret",
    lambda: Programs(
      parts,
      batch_size=config.data.batch_size,
      probe_examples=config.tamiyo.probe_examples,
      seed=config.seed,
      limits=assembly.compile_limits(config),
      stopping=stopping,
      on_compile=on_compile,
      on_use=on_use,
      profile=profile,
    ),
    stop=lambda programs: programs.forge.close(),
  )
  growth = roster.start(
    "tamiyo",
    lambda: Growth(parts.growth, parts.policy, bus, programs, programs.forge),
    health=lambda _: policy_fallback.health(run().policy),
  )
  state = assembly.new_state(config, parts)
  fresh = recovery.new_run(parts, state, seed=config.seed)
  store = roster.start(
    "store",
    lambda: open_store(workdir, config, parts),
    stop=lambda store: store.close(),
  )
  if store.redis:
    roster.start("redis", lambda: store.redis)
  if traced:
    roster.start("profile", lambda: profile, stop=Profile.close)
  return Started(kernels, parts, programs, growth, fresh, store)
