"""What is installed, made up."""

import types
from importlib import metadata

ASKED = (
  "jax<0.12,>=0.10",
  "numpy>=2",
  "rich>=13",
  "triton<3.10,>=3.9; extra == 'triton'",
  "jax[cuda12]<0.12,>=0.10; extra == 'cuda12'",
  "pytest>=8; extra == 'test'",
  "winreg; platform_system == 'Nowhere'",
)
GOOD = {
  "jax": "0.11.2",
  "jaxlib": "0.11.2",
  "flax": "0.12.8",
  "optax": "0.2.8",
  "orbax-checkpoint": "0.12.8",
  "grain": "0.2.18",
  "ml-collections": "1.1.0",
  "numpy": "2.4.6",
  "rich": "15.0",
  "esper-jax": "0.1.0",
}
REQUIRES = {"esper-jax": ASKED, "jax": ("jaxlib<=0.11.2,>=0.11.1", "scipy")}


def finder(**changes):
  """Stands for `importlib.metadata.distribution`.

  Args:
    **changes: package, "_" for "-" -> its version; None: it is not there.
  """
  own = {name.replace("_", "-"): text for name, text in changes.items()}
  versions = {n: v for n, v in {**GOOD, **own}.items() if v is not None}

  def find(name):
    if name not in versions:
      raise metadata.PackageNotFoundError(name)
    return types.SimpleNamespace(
      version=versions[name],
      requires=REQUIRES.get(name),
      metadata={"Requires-Python": ">=3.11"},
    )

  return find
