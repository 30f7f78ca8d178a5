"""Hosts by name."""

import difflib
from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Dtype

from esper_jax.hosts.mlp import MLP, mlp_slots
from esper_jax.hosts.norms import NORMS
from esper_jax.hosts.resnet import ResNet, resnet_slots
from esper_jax.hosts.transformer import GPT, gpt_slots
from esper_jax.types import InputError


class _Family(NamedTuple):
  blocks: tuple[int, ...]  # per stage
  width: int  # of the first stage


# 6n + 2 layers in three stages: He et al. 2016 (arXiv:1512.03385) section 4.2.
# 18 and 34: table 1 there, with the stem for small images.
_RESNETS = {
  "resnet8": _Family((1, 1, 1), 16),
  "resnet18": _Family((2, 2, 2, 2), 64),
  "resnet20": _Family((3, 3, 3), 16),
  "resnet32": _Family((5, 5, 5), 16),
  "resnet34": _Family((3, 4, 6, 3), 64),
  "resnet56": _Family((9, 9, 9), 16),
}
_MLP = "mlp"
_MLP_WIDTH = 128
_GPT = "gpt"
_GPT_WIDTH = 64


def host_names() -> tuple[str, ...]:
  """Returns the valid names of hosts."""
  return (*_RESNETS, _MLP, _GPT)


def reads_tokens(name: str) -> bool:
  """Whether a host takes tokens int32 [batch, time], not images."""
  return name == _GPT


def slot_names(name: str, *, depth: int = 2) -> tuple[str, ...]:
  """Returns the names of a host's slots in the order they run.

  Args:
    name: of the host.
    depth: hidden layers of "mlp", blocks of "gpt"; ResNets ignore it.

  Raises:
    InputError: if there is no such host.
  """
  _check_name("host", name, host_names())
  if name == _MLP:
    return mlp_slots(depth)
  if name == _GPT:
    return gpt_slots(depth)
  return resnet_slots(_RESNETS[name].blocks)


def make_host(
  name: str,
  *,
  num_classes: int,
  width: int = 0,
  depth: int = 2,
  heads: int = 4,
  context: int = 64,
  norm: str = "batch",
  inner_widths: Sequence[int] = (),
  slots: str | Sequence[str] = "all",
  dtype: Dtype = jnp.float32,
) -> nn.Module:
  """Builds a host network.

  The module maps float [batch, height, width, channels] to float32 logits
  [batch, num_classes] by `apply(variables, x, train=...)`; "gpt" maps tokens
  int32 [batch, time] to logits [batch, time, num_classes]. Its collections are
  `params` and, of ResNets with norm "batch", `batch_stats`.

  Args:
    name: one of `host_names()`.
    num_classes: number of logits, at least 2.
    width: channels of the first stage (features of a hidden layer of "mlp", of
      the residual stream of "gpt"); 0 = the host's own: 64 for resnet18 and
      34 and for gpt, 16 for the other ResNets, 128 for mlp.
    depth: hidden layers of "mlp", blocks of "gpt", at least 1; ResNets ignore
      it.
    heads: of the attention of "gpt", a divisor of its width; others ignore it.
    context: tokens that "gpt" sees at once; others ignore it.
    norm: "batch" or "group"; "mlp" and "gpt" ignore it.
    inner_widths: per stage, the channels between the two convolutions of a
      residual block; 0 = the stage's own. Stages beyond it keep their own.
    slots: "all", or the names of the slots to place; () is the plain network.
    dtype: of the computation: float32 or bfloat16.

  Raises:
    InputError: if a name or a number is not valid.
  """
  _check_name("host", name, host_names())
  _check_at_least("depth", depth, 1)
  valid = slot_names(name, depth=depth)
  _check_name("norm", norm, tuple(NORMS))
  chosen = _choose_slots(name, slots, valid)
  _check_at_least("num_classes", num_classes, 2)
  _check_at_least("width", width, 0)
  if name not in _RESNETS and inner_widths:
    raise InputError(
      f"inner_widths is {tuple(inner_widths)} but host '{name}' has no stages;"
      " leave it empty or choose a resnet"
    )
  if name == _MLP:
    return MLP(num_classes, width or _MLP_WIDTH, depth, chosen, dtype)
  if name == _GPT:
    width = width or _GPT_WIDTH
    _check_at_least("heads", heads, 1)
    _check_at_least("context", context, 1)
    if width % heads:
      raise InputError(
        f"host.heads is {heads}, which does not divide the width {width} of"
        " host 'gpt': set --config.host.heads or --config.host.width"
      )
    return GPT(num_classes, width, depth, heads, context, chosen, dtype)
  family = _RESNETS[name]
  stages = len(family.blocks)
  if len(inner_widths) > stages or min(inner_widths, default=0) < 0:
    raise InputError(
      f"inner_widths is {tuple(inner_widths)} but host '{name}' has {stages}"
      f" stages; give at most {stages} numbers, each at least 0 (0 = the"
      " stage's own width)"
    )
  return ResNet(
    num_classes,
    family.blocks,
    width or family.width,
    norm,
    tuple(inner_widths),
    chosen,
    dtype,
  )


def _choose_slots(host, slots, valid):
  if slots == "all":
    return valid
  if isinstance(slots, str):
    raise InputError(
      f"slots is '{slots}'; give 'all' or a tuple of names, e.g."
      f" ('{valid[0]}',)"
    )
  for slot in slots:
    _check_name(f"slot of host '{host}'", slot, valid)
  return tuple(name for name in valid if name in slots)


def _check_name(what, name, valid):
  if name in valid:
    return
  near = difflib.get_close_matches(str(name), valid, n=1)
  hint = f" (did you mean '{near[0]}'?)" if near else ""
  raise InputError(
    f"there is no {what} named '{name}'{hint}; valid: {', '.join(valid)}"
  )


def _check_at_least(key, value, least):
  if value < least:
    raise InputError(f"{key} is {value}; it must be at least {least}")
