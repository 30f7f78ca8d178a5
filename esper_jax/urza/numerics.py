"""Whether a kernel computes what its reference computes.

The truth is the reference in float32, from the very numbers that the kernel
gets. What is judged is a function, the launch: on a machine without a GPU any
other function can stand in its place.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from esper_jax.urza.kernel import Kernel
from esper_jax.urza.launching import Launch, NotLaunched
from esper_jax.urza.samples import FAR, distance, samples

# (batch, height, width): a single row; fewer rows than a tile; some tiles and
# a rest.
SHAPES = ((1, 1, 1), (2, 5, 7), (3, 13, 11))
SPECIAL = ((1, 1, 1), (2, 5, 7))  # with NaN and infinities among the inputs


class Check(NamedTuple):
  """What came of a comparison.

  Attributes:
    error: the largest; see `samples.distance`.
    tolerance: what the kernel is allowed.
    reason: what is wrong; empty where nothing is.
  """

  error: float
  tolerance: float
  reason: str

  @property
  def ok(self) -> bool:
    """Whether nothing is wrong."""
    return not self.reason


def check(
  launch: Launch,
  kernel: Kernel,
  dtype: str,
  constants: Mapping[str, int],
  *,
  shapes: Sequence[tuple[int, int, int]] = SHAPES,
  special: bool = True,
  seed: int = 0,
) -> Check:
  """Compares a launch with the reference on several shapes.

  Args:
    launch: what is judged.
    kernel: whose reference is the truth.
    dtype: of the activations.
    constants: of the kernel's form.
    shapes: (batch, height, width) of each call.
    special: whether NaN and both infinities must pass through as well.
    seed: of the arguments.
  """
  tolerance = kernel.tolerance[dtype]
  cases = [(shape, False) for shape in shapes]
  if special:
    cases += [(shape, True) for shape in SPECIAL]
  worst = 0.0
  for number, (shape, odd) in enumerate(cases):
    where = f"at {'x'.join(map(str, shape))}"
    where += " with NaN and infinities" if odd else ""
    args = samples(kernel, dtype, constants, *shape, seed + number, special=odd)
    arrays = tuple(map(jnp.asarray, args))
    try:
      got = tuple(map(np.asarray, launch(*arrays)))
    except NotLaunched as error:
      return Check(worst, tolerance, f"{where}: {error}")
    except Exception as error:  # whatever the device makes of it
      first = "".join(str(error).splitlines()[:1])
      text = f"{type(error).__name__}: {first}"
      return Check(worst, tolerance, f"{where} it raised {text}")
    expected = jax.eval_shape(kernel.reference, *arrays)
    error, reason = compare(got, truth(kernel, arrays), expected, tolerance)
    worst = max(worst, error)
    if reason:
      return Check(worst, tolerance, f"{where}: {reason}")
  return Check(worst, tolerance, "")


def truth(kernel: Kernel, arrays: Sequence[Any]) -> tuple[np.ndarray, ...]:
  """The reference in float32, its products exact to float32."""
  wide = [
    a.astype(jnp.float32) if jnp.issubdtype(a.dtype, jnp.floating) else a
    for a in arrays
  ]
  with jax.default_matmul_precision("highest"):
    out = jax.jit(lambda *a: kernel.reference(*a))(*wide)
  return tuple(np.asarray(o) for o in out)


def compare(
  got: Sequence[np.ndarray],
  want: Sequence[np.ndarray],
  expected: Sequence[Any],
  tolerance: float,
) -> tuple[float, str]:
  """Compares results.

  Args:
    got: the kernel's.
    want: the truth, in float32.
    expected: what has the shapes and dtypes that the kernel's must have.
    tolerance: see `Check`.

  Returns:
    (largest error, what is wrong or "").
  """
  if len(got) != len(expected):
    return FAR, f"{len(got)} results, not {len(expected)}"
  for n, (a, e) in enumerate(zip(got, expected, strict=True)):
    if (a.shape, a.dtype) != (e.shape, e.dtype):
      kinds = f"{a.dtype}{list(a.shape)}, not {e.dtype}{list(e.shape)}"
      return FAR, f"result {n} is {kinds}"
  return largest(got, want, tolerance)


def largest(
  got: Sequence[Any], want: Sequence[Any], tolerance: float
) -> tuple[float, str]:
  """Compares results of the same shapes; see `compare`.

  Raises:
    ValueError: their shapes differ.
  """
  errors = [distance([a], [b]) for a, b in zip(got, want, strict=True)]
  worst = max(errors, default=0.0)
  if worst <= tolerance:
    return worst, ""
  n = errors.index(worst)
  if worst == FAR:
    return worst, (
      f"result {n} is not finite where it should be, or the other way round"
    )
  text = f"an error of {worst:.2e} (allowed: {tolerance:.2e})"
  return worst, f"result {n} has {text}"


def deterministic(
  launch: Launch, args: Sequence[Any], *, runs: int = 3
) -> bool:
  """Whether a launch returns the same bits each time."""
  first: list[bytes] | None = None
  for _ in range(runs):
    bits = [np.asarray(out).tobytes() for out in launch(*args)]
    if first is not None and bits != first:
      return False
    first = bits
  return True
