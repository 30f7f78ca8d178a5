"""The training of a policy: phases of learners, tests, checkpoints, resumption.

A run is a pure function of its parts and its seed (on CPU, with the number of
cores): one that was killed and resumed ends with the same bits. Training draws
from one pool of environments; the tests, which pick the best parameters and
end a run that no longer improves, from another.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from esper_jax.simic import rollout
from esper_jax.simic.actor import Actor, using
from esper_jax.simic.learning import Learner
from esper_jax.simic.planted import where
from esper_jax.simic.reward import Prices, returns
from esper_jax.simic.rollout import Trajectory, Trials
from esper_jax.tamiyo import shepherd
from esper_jax.tolaria import checkpoints, workdir
from esper_jax.tolaria.arrays import flatten, restore_into
from esper_jax.tolaria.workdir import Workdir
from esper_jax.types import PyTree


class Settings(NamedTuple):
  """How long to train, and on what.

  Attributes:
    seed: every random draw of the run derives from it.
    learner: "ppo" or "evolution": what follows.
    imitate: iterations that copy the heuristic first; 0 = none.
    explore: iterations of Monte Carlo control after them; 0 = none.
    iterations: of the learner, at most; 0 = none.
    environments: in the training pool.
    held_out: environments of the tests.
    test_every: iterations between two tests.
    patience: tests of the learner without a better one that end the run; 0 =
      never.
    checkpoint_every: iterations between two checkpoints.
  """

  seed: int = 0
  learner: str = "ppo"
  imitate: int = 0
  explore: int = 50
  iterations: int = 0
  environments: int = 4096
  held_out: int = 2048
  test_every: int = 10
  patience: int = 10
  checkpoint_every: int = 10


class Phase(NamedTuple):
  """One learner's turn.

  Attributes:
    name: for the log.
    learner: what learns.
    iterations: of it.
    patience: tests without a better one that end it; 0 = never.
  """

  name: str
  learner: Learner
  iterations: int
  patience: int = 0


class Run(struct.PyTreeNode):
  """Where a training run stands.

  Attributes:
    learner: state of the present phase's learner.
    best: parameters of the best test so far.
    score: float32 []. Its mean return; -inf before the first test.
    stale: int32 []. Tests since then in this phase.
  """

  learner: Any
  best: PyTree
  score: jax.Array
  stale: jax.Array


class Trained(NamedTuple):
  """What came out of a run.

  Attributes:
    params: the best parameters.
    score: their mean return in the held-out environments.
    iteration: of all phases, how many were made.
    finished: False where it was asked to stop before its end.
    seconds: of this process.
  """

  params: PyTree
  score: float
  iteration: int
  finished: bool
  seconds: float


class Keys(NamedTuple):
  """The random keys of a run, by use."""

  train: jax.Array
  held_out: jax.Array
  params: jax.Array
  phases: jax.Array
  teacher: jax.Array


def keys_of(seed: int) -> Keys:
  """Derives the keys of a run from its seed."""
  return Keys(*jax.random.split(jax.random.key(seed), len(Keys._fields)))


def train(
  actor: Actor,
  environment: Any,
  phases: Sequence[Phase],
  prices: Prices,
  settings: Settings,
  work: Workdir,
  *,
  say: Callable[[str], None] = print,
  stop: Callable[[], bool] = lambda: False,
  jit: Callable[..., Any] = jax.jit,
) -> Trained:
  """Trains, or takes up the run that the directory holds.

  Args:
    actor: the network that learns.
    environment: see `simic.records.Environment`.
    phases: in turn; each starts from the parameters the one before ended with.
    prices: see `reward.Prices`.
    settings: see `Settings`.
    work: the run directory, held by this process.
    say: takes the lines of progress.
    stop: asked after every iteration.
    jit: compiles the programs; a hasty one serves tests.

  Returns:
    See `Trained`.

  Raises:
    InputError: a checkpoint does not fit these parts.
    RunFailedError: something cannot be written.
  """
  began = time.monotonic()
  keys = keys_of(settings.seed)
  run, meta = _resume(actor, phases, keys, work)
  run = rollout.everywhere(run)
  done, start, number = meta["iteration"], meta["start"], meta["phase"]
  if number == len(phases):
    say(f"this run is complete: {done} iterations")
    return Trained(run.best, float(run.score), done, True, 0.0)
  watch = jit(_make_watch(actor, environment))

  def trials(key: jax.Array, size: int) -> Trials:
    def still(some):
      return watch(run.best, some, jnp.asarray(False)).outcome

    batch = settings.held_out  # one program for twins and tests
    some = rollout.make_trials(environment, key, size, batch=batch, still=still)
    return rollout.everywhere(some)

  pool = trials(keys.train, settings.environments)
  held_out = trials(keys.held_out, settings.held_out)
  say(
    f"environments {settings.environments} to train on,"
    f" {settings.held_out} held out, {environment.epochs} epochs,"
    f" {time.monotonic() - began:.0f} s"
  )
  judge = jit(lambda played: _judge(played, held_out.still, prices))
  updates = [jit(phase.learner.update) for phase in phases]
  if done:
    say(f"resumed after {done} iterations")
  last = sum(phase.iterations for phase in phases)
  log = workdir.open_log(work.metrics, offset=meta["metrics"], fsync=False)
  try:
    stopped = False
    while number < len(phases) and not stopped:
      phase = phases[number]
      state, figures = updates[number](run.learner, pool)
      done += 1
      line = {"iteration": done, "phase": phase.name, **_numbers(figures)}
      run = run.replace(learner=state)
      ends = done == start + phase.iterations
      if ends or (done - start) % settings.test_every == 0:
        params = phase.learner.params(state)
        played = watch(params, held_out.keys, jnp.asarray(True))
        score, found = judge(played)
        line |= {"held_out/return": float(score), **_numbers(found)}
        better = score > run.score
        run = run.replace(
          best=where(better, params, run.best),
          score=jnp.where(better, score, run.score),
          stale=jnp.where(better, 0, run.stale + 1).astype(jnp.int32),
        )
        say(_progress(line, last))
        ends = ends or 0 < phase.patience <= int(run.stale)
      log.append(line)
      if ends:
        number += 1
        start = done
        fresh = _enter(run, phases, number, keys, phase.learner.params(state))
        run = rollout.everywhere(fresh)
      stopped = stop()
      whole = done % settings.checkpoint_every == 0
      if whole or ends or stopped:
        log.sync()
        meta = dict(zip(_META, (done, start, number, log.offset), strict=True))
        arrays = flatten(run)
        checkpoints.save(work.checkpoints, done, arrays, meta, kind="train")
  finally:
    log.close()
  return Trained(
    params=run.best,
    score=float(run.score),
    iteration=done,
    finished=number == len(phases),
    seconds=time.monotonic() - began,
  )


def _make_watch(actor: Actor, environment: Any) -> Callable[..., Trajectory]:
  """Builds (parameters, keys, whether it decides at all) -> Trajectory."""

  def watch(params, keys, decides):
    own = using(actor, params)

    def decide(memory, observation, key):
      memory, decisions, record = own(memory, observation, key)
      waits = shepherd.waiting(observation.stage.shape[0])
      return memory, where(decides, decisions, waits), record

    return rollout.population(
      lambda key: rollout.play(environment, decide, (), key, key), keys
    )

  return watch


def _judge(
  played: Trajectory, still: Any, prices: Prices
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """(mean return, figures by name)."""
  outcome = played.outcome
  gain = (outcome.val_accuracy - still.val_accuracy)[:, -1].mean()
  figures = rollout.decision_statistics(played) | {"gain": gain}
  return returns(outcome, still, prices).mean(), {
    f"held_out/{name}": value for name, value in figures.items()
  }


def _fresh(
  phases: Sequence[Phase], number: int, keys: Keys, params: PyTree
) -> Any:
  """The state with which a phase begins; () after the last one."""
  if number == len(phases):
    return ()
  key = jax.random.fold_in(keys.phases, number)
  return phases[number].learner.init(params, key)


def _enter(
  run: Run, phases: Sequence[Phase], number: int, keys: Keys, params: PyTree
) -> Run:
  fresh = _fresh(phases, number, keys, params)
  return run.replace(learner=fresh, stale=jnp.zeros((), jnp.int32))


# What a checkpoint says beside its arrays: iterations made, those before this
# phase, the phase, and the bytes of metrics.jsonl.
_META = ("iteration", "start", "phase", "metrics")


def _resume(
  actor: Actor, phases: Sequence[Phase], keys: Keys, work: Workdir
) -> tuple[Run, dict[str, int]]:
  """The run as the newest good checkpoint holds it, or a new one."""
  params = actor.init(keys.params)
  run = Run(
    learner=(),
    best=params,
    score=jnp.float32(-jnp.inf),
    stale=jnp.zeros((), jnp.int32),
  )
  loaded, _ = checkpoints.latest_good(work.checkpoints)
  if loaded is None:
    fresh = _enter(run, phases, 0, keys, params)
    return fresh, dict.fromkeys(_META, 0)
  form = _enter(run, phases, loaded.meta["phase"], keys, params)
  return restore_into(form, loaded.arrays), loaded.meta


def _numbers(figures: Mapping[str, jax.Array]) -> dict[str, float]:
  return {k: float(v) for k, v in jax.device_get(dict(figures)).items()}


def _progress(line: Mapping[str, Any], last: int) -> str:
  def points(name: str) -> str:
    return f"{100 * line[name]:+.2f}"

  return (
    f"{line['phase']:9} {line['iteration']:4}/{last}  held out: return"
    f" {points('held_out/return')} gain {points('held_out/gain')} points,"
    f" germinated {line['held_out/germinated']:.2f} fossilized"
    f" {line['held_out/fossilized']:.2f} culled {line['held_out/culled']:.2f}"
  )
