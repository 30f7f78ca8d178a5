"""Kernels as text, and as Triton's functions where Triton is."""

import importlib.util
import subprocess
import sys
import textwrap

import pytest

from esper_jax.urza.language import Source, jit, tl

needs_triton = pytest.mark.skipif(
  importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)

KERNEL = """
from esper_jax.urza.language import jit, tl
{before}

@jit
def helper(value):
  return value {sign} value

{between}
@jit
def kernel(x, y, C: tl.constexpr):
  at = tl.arange(0, C)
  tl.store(y + at, helper(tl.load(x + at)))
"""


def loaded(folder, name, module="kernel_of_a_test", **text):
  """The module of a new file."""
  text = {"before": "", "between": "", "sign": "+"} | text
  file = folder / f"{name}.py"
  file.write_text(KERNEL.format(**text))
  spec = importlib.util.spec_from_file_location(module, file)
  module = importlib.util.module_from_spec(spec)
  sys.modules[spec.name] = module
  spec.loader.exec_module(module)
  return module


@pytest.fixture
def folder(tmp_path):
  yield tmp_path
  for name in [n for n in sys.modules if n.startswith("kernel_of_")]:
    del sys.modules[name]


def test_a_kernel_has_a_name_and_parameters(folder):
  kernel = loaded(folder, "one").kernel
  assert isinstance(kernel, Source)
  assert kernel.name == "kernel"
  assert kernel.parameters == ("x", "y", "C")


def test_digest_is_that_of_the_text_wherever_it_stands(folder):
  one = loaded(folder, "one").kernel.digest
  moved = loaded(folder, "two", before="import os\n\nOTHER = 1\n")
  assert moved.kernel.digest == one
  between = loaded(folder, "three", between="# A remark between them.\n")
  assert between.kernel.digest == one


def test_digest_counts_the_helpers(folder):
  one, two = loaded(folder, "one"), loaded(folder, "two", sign="*")
  assert one.kernel.digest != two.kernel.digest
  assert one.kernel.digest != one.helper.digest
  # Triton writes the module of a helper into the code.
  other = loaded(folder, "three", module="kernel_of_another")
  assert one.kernel.digest != other.kernel.digest
  assert one.helper.digest == other.helper.digest


@needs_triton
def test_activation_changes_no_digest_and_happens_once(folder):
  module = loaded(folder, "one")
  before = module.kernel.digest
  active = module.kernel.activate()
  assert active is module.kernel.activate()
  assert module.kernel.digest == before
  assert type(active).__name__ == "JITFunction"
  assert type(module.helper).__name__ == "JITFunction"
  assert module.tl.__name__ == "triton.language"


def test_kernels_are_read_without_triton():
  text = """
    import sys
    from esper_jax.urza.kernels import lowrank_forward, lowrank_weights
    from esper_jax.urza import interpret, dispatch
    assert len(lowrank_forward.KERNEL.source.digest) == 64
    found = {"triton", "jax_triton"} & set(sys.modules)
    assert not found, found
  """
  done = subprocess.run(
    [sys.executable, "-c", textwrap.dedent(text)],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr


def test_activation_without_triton_is_an_import_error(monkeypatch):
  monkeypatch.setitem(sys.modules, "triton", None)
  with pytest.raises(ImportError):
    Source(test_kernels_are_read_without_triton).activate()


def test_a_kernel_is_not_called_by_python(folder):
  with pytest.raises(TypeError, match="'helper' is for Triton"):
    loaded(folder, "one").helper(1.0)


def test_what_stands_for_the_language_has_only_constexpr():
  assert jit(lambda: None).name == "<lambda>"
  if not hasattr(tl, "arange"):
    assert tl.constexpr == "constexpr"
    with pytest.raises(AttributeError):
      _ = tl.arange
