"""From a run directory to its network; only reads, even beside a live run."""

from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from esper_jax import config as config_lib
from esper_jax import defaults
from esper_jax.control import never_grown
from esper_jax.hosts.host import Host
from esper_jax.knobs import GIVEN
from esper_jax.tolaria import (
  assembly,
  checkpoints,
  hosting,
  recovery,
  workdir,
)
from esper_jax.tolaria.assembly import Parts
from esper_jax.tolaria.checkpoints import Checkpoint, Damage
from esper_jax.tolaria.given import NOTHING, Given
from esper_jax.tolaria.state import TrainState
from esper_jax.tolaria.workdir import Workdir
from esper_jax.types import InputError


class Restored(NamedTuple):
  """A run's network as its newest whole checkpoint holds it.

  Attributes:
    path: the run directory.
    status: of result.json; "unfinished" where there is none.
    parts: what the run is made of, its policy aside.
    host: arguments of `hosts.registry.make_host`, slots left out; plain values.
      Of a host that was given: name ("given"), title and dtype.
    model: the host that was given, before anything grew in it; else None.
    modules: that register blueprints of the run.
    seed: of the run.
    state: the training state.
    checkpoint: from which it comes.
    epoch: epochs done.
    next_event: number of the first event that came after it.
    damaged: newer checkpoints that were passed over.
    config_hash: of the keys that change results.
  """

  path: Path
  status: str
  parts: Parts
  host: dict[str, Any]
  model: Host | None
  modules: tuple[str, ...]
  seed: int
  state: TrainState
  checkpoint: Checkpoint
  epoch: int
  next_event: int
  damaged: list[Damage]
  config_hash: str


def restore(
  path: str | Path, *, data_dir: str = "", given: Given = NOTHING
) -> Restored:
  """Reads the network of a run that was finished or interrupted.

  Args:
    path: the run directory.
    data_dir: folder (of a text: file) of the run's data, where it is no longer
      where the config says; "" is the config's own.
    given: what the run was given in place of what its config names; its policy
      and first variables are not used.

  Raises:
    InputError: it is no run directory, has no whole checkpoint, or its data,
      its blueprints or a model of the user's are not there.
  """
  work = Workdir(Path(path).absolute(), lock=-1)
  document = workdir.read_json(work.config)
  if document is None or not isinstance(document.get("config"), dict):
    raise InputError(
      f"{work.path} is not a run directory (it has no config.json of a run);"
      f" give the directory that --workdir named{workdir.beside(path)}"
    )
  if given.host is None and document["config"]["host"]["name"] == GIVEN:
    raise InputError(
      f"{work.path} is a run of esper_jax.grow with a model of yours, which can"
      " not be read from there; in Python, call grow(...) as before with"
      f" workdir='{work.path}' (a run that is complete returns at once), then"
      " .export(DIR) of what it returns"
    )
  loaded, damaged = checkpoints.latest_good(work.checkpoints)
  if loaded is None:
    whole = "no whole checkpoint" if damaged else "no checkpoint"
    raise InputError(
      f"{work.path} has {whole}, so there is no network to read; run its"
      " command again until it has saved one"
    )
  config = _without_growth(document, data_dir)
  given = given._replace(policy=None, variables=None)
  data = assembly.load_data(config, given)
  if data.sha256 != document.get("data_sha256"):
    raise InputError(
      f"{work.path} is a run on other data: its SHA-256 is"
      f" {document.get('data_sha256')} there and {data.sha256} here; give the"
      " folder of that run's data"
    )
  parts = assembly.assemble(config, data, given)
  state = recovery.state_from_checkpoint(
    loaded, lambda: assembly.new_state(config, parts), parts
  )
  host = hosting.host_arguments(config, data.num_classes)
  if given.host is not None:
    host = {"name": GIVEN, "title": given.title, "dtype": host["dtype"]}
  result = workdir.read_json(work.result) or {}
  return Restored(
    path=work.path,
    status=result.get("status", "unfinished"),
    parts=parts,
    host=host,
    model=given.host,
    modules=tuple(config.urza.modules),
    seed=config.seed,
    state=state,
    checkpoint=loaded.checkpoint,
    epoch=loaded.meta["run"]["epoch"],
    next_event=loaded.meta["next_event"],
    damaged=damaged,
    config_hash=document["config_hash"],
  )


def _without_growth(document: dict[str, Any], data_dir: str) -> ConfigDict:
  """The run's config, asking no policy and on the run's own precision.

  Keys that came after the run are at their defaults, which are as it was.
  """
  config = defaults.get_config()
  with config.ignore_type():
    config.update(ConfigDict(document["config"]))
  config_lib.check_complete(config)
  config = never_grown(config)
  with config.ignore_type():
    config.tamiyo.schedule = ()
    kind, colon, _ = config.data.source.partition(":")
    if data_dir and colon:
      config.data.source = f"{kind}:{data_dir}"
    elif data_dir:
      config.data.dir = data_dir
    if config.train.precision == "auto":  # of the device that trained it
      on_cpu = str(document.get("device")).startswith("cpu")
      config.train.precision = "float32" if on_cpu else "bfloat16"
  return config_lib.validate(config)
