"""What the assembler says about PTX."""

import importlib.util

import pytest

from esper_jax.urza import assembler
from esper_jax.urza.assembler import AssemblerError

pytestmark = pytest.mark.skipif(
  importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)

EMPTY = b"""
.version 8.7
.target sm_80
.address_size 64
.visible .entry nothing()
{
  ret;
}
"""


def crowded(values: int, registers: int) -> bytes:
  """A kernel that needs all of its values at once, in few registers."""
  lines = [f"ld.global.f32 %f{n}, [%rd2+{4 * n}];" for n in range(values)]
  lines += [
    f"st.global.f32 [%rd2+{4 * n}], %f{values - 1 - n};" for n in range(values)
  ]
  body = "\n  ".join(lines)
  text = f"""
.version 8.7
.target sm_80
.address_size 64
.visible .entry crowded(.param .u64 x)
.maxnreg {registers}
{{
  .reg .f32 %f<{values}>;
  .reg .b64 %rd<3>;
  ld.param.u64 %rd1, [x];
  cvta.to.global.u64 %rd2, %rd1;
  {body}
  ret;
}}
"""
  return text.encode()


def facts(ptx: bytes, shared: int = 0, target: int = 80) -> dict:
  return assembler.facts(assembler.assemble(ptx, target), ptx, target, shared)


def test_values_that_do_not_fit_into_registers_are_counted():
  roomy = facts(crowded(200, 255))
  tight = facts(crowded(200, 32))
  assert roomy["spills"] == 0 and roomy["registers"] > 200
  assert tight["spills"] >= 2 * (200 - 32) * 4 and tight["registers"] == 32


def test_ptx_is_for_its_target_and_what_came_after():
  assert facts(EMPTY)["assembled_for"] == [80, 86, 89, 90, 100]
  newest = EMPTY.replace(b"sm_80", b"sm_100")
  assert facts(newest, target=100)["assembled_for"] == [100]


def test_ptx_of_one_architecture_is_for_no_other():
  hopper = EMPTY.replace(b"sm_80", b"sm_90a")
  assert facts(hopper, target=90)["assembled_for"] == [90]
  assert not assembler.accepts(hopper, 100)


@pytest.mark.parametrize(
  ("kib", "targets"),
  [
    (99, [80, 86, 89, 90, 100]),
    (100, [80, 90, 100]),
    (164, [90, 100]),
    (228, []),
  ],
)
def test_what_has_too_little_shared_memory_is_left_out(kib, targets):
  found = facts(EMPTY, shared=kib * 1024)
  assert found["assembled_for"] == targets
  assert found["ok"] == (80 in targets)


def test_an_instruction_that_a_target_lacks_is_noticed():
  wants_80 = EMPTY.replace(b"ret;", b"cp.async.wait_all; ret;")
  assert assembler.accepts(wants_80, 80)
  with pytest.raises(AssemblerError, match="sm_80 or higher"):
    assembler.assemble(wants_80.replace(b"target sm_80", b"target sm_75"), 75)


@pytest.mark.parametrize(
  ("ptx", "reason"),
  [
    (b"no code", "Missing .version directive"),
    (EMPTY.replace(b"8.7", b"9.4"), "Unsupported .version 9.4"),
    (
      EMPTY.replace(b"ret", b"return"),
      "^ptxas kernel.ptx, line 7; .* known inst",
    ),
    (EMPTY.split(b".visible")[0], "does not say what the code needs"),
  ],
)
def test_what_is_no_code_is_refused_in_one_line(ptx, reason):
  with pytest.raises(AssemblerError, match=reason) as caught:
    assembler.assemble(ptx, 80)
  assert "\n" not in str(caught.value)
