"""From a config to the growth that a run replays."""

from ml_collections import ConfigDict

from esper_jax.oona import growth_log
from esper_jax.tamiyo import replay
from esper_jax.tamiyo.replay import Places
from esper_jax.tolaria.growth_options import GrowthOptions
from esper_jax.types import InputError


def with_replay(config: ConfigDict, growth: GrowthOptions) -> GrowthOptions:
  """Adds the plan of what is replayed, if anything is.

  Args:
    config: validated.
    growth: what the run fixes about growth.

  Raises:
    InputError: the recorded growth does not fit the host or the run.
  """
  t = config.tamiyo
  if t.policy != "replay":
    return growth
  places = Places(
    list(growth.slots), growth.blueprints, growth.fits, growth.rules
  )
  lives = growth_log.read_lives(t.replay)
  try:
    replay.check(lives, places)
    if not t.replay_final:
      replay.check_epochs(lives, growth.rules.epochs)
    if t.replay_permute == "slots":
      lives = replay.place_at_random(lives, places, seed=t.replay_seed)
    elif t.replay_permute == "times":
      lives = replay.time_at_random(
        lives, growth.rules, warmup=t.warmup_epochs, seed=t.replay_seed
      )
  except InputError as error:
    raise InputError(f"--config.tamiyo.replay={t.replay}: {error}") from error
  if t.replay_final:
    lives = replay.from_the_start(lives)
  return growth._replace(
    replay=replay.make_plan(lives, places),
    guesses=0,  # all is known
    warmup=config.optimizer.newborn_warmup_steps,
  )


def describe(config: ConfigDict) -> str:
  """Says in a few words what is replayed."""
  t = config.tamiyo
  what = "the final network" if t.replay_final else "the growth"
  at_random = {
    "": "",
    "slots": f", places drawn at random (seed {t.replay_seed})",
    "times": f", times drawn at random (seed {t.replay_seed})",
  }
  start = ", there from the start" if t.replay_final else ""
  return (
    f"policy replay, {what} of {t.replay}{start}{at_random[t.replay_permute]}"
  )
