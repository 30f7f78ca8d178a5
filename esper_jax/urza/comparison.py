"""Whether a registry holds what a build makes, byte for byte."""

from collections.abc import Iterable, Sequence

from esper_jax.types import InputError
from esper_jax.urza.artefact import Damaged, to_document
from esper_jax.urza.compile import (
  CompilationError,
  compile_spec,
  triton_version,
)
from esper_jax.urza.kernel import Kernel, handle_of
from esper_jax.urza.orders import (
  DTYPES,
  TARGETS,
  Report,
  Request,
  each,
  has_facts,
  name_of,
  reason_of,
  requests,
)
from esper_jax.urza.registry import Registry


def differences(
  registry: Registry,
  kernels: Iterable[Kernel],
  targets: Sequence[int] = TARGETS,
  dtypes: Sequence[str] = DTYPES,
  *,
  strangers: bool = True,
  report: Report = print,
) -> list[str]:
  """Compiles again what the registry holds of these kernels, and compares.

  Bytes, manifests and static figures must be equal; what `build` would make
  must be there; and nothing that no kernel here explains.

  Args:
    registry: is only read.
    kernels: whose artefacts are looked at.
    targets: compute capabilities that are looked at.
    dtypes: of what must be there.
    strangers: whether artefacts of other kernels count as differences.
    report: takes a line about each artefact.

  Returns:
    A line about each difference.

  Raises:
    InputError: nothing can be compiled.
  """
  known = {kernel.name: kernel for kernel in kernels}

  def missing(request: Request) -> tuple[str, str]:
    artefacts, _ = registry.find(handle_of(request.kernel, request.form))
    there = any(a.spec.target == request.target for a in artefacts)
    return str(request), "" if there else "missing"

  def differs(key: str) -> tuple[str, str]:
    try:
      spec = registry.record(key).artefact.spec
    except (KeyError, Damaged) as error:
      return f"artefact {key[:12]}", reason_of(error)
    kernel = known.get(spec.kernel)
    if kernel is None:
      stranger = "there is no such kernel" if strangers else ""
      return name_of(spec), stranger
    if spec.target not in targets:
      return name_of(spec), ""
    return name_of(spec), difference(registry, key, kernel)

  wanted = map(missing, requests(known.values(), targets, dtypes))
  found = [f"{name}: {problem}" for name, problem in wanted if problem]
  for line in found:
    report(f"DIFFERENT {line}")
  for name, problem in each(differs, registry.keys()):
    report(f"DIFFERENT {name}: {problem}" if problem else f"{name}: fine")
    if problem:
      found.append(f"{name}: {problem}")
  return found


def difference(registry: Registry, key: str, kernel: Kernel) -> str:
  """What is not as a build makes it; "" where all is.

  Raises:
    InputError: Triton is not installed.
  """
  triton_version()
  try:
    artefact, files = registry.load(key)
    records = registry.record(key).evidence
    made = compile_spec(kernel, artefact.spec)
  except (KeyError, Damaged, CompilationError, InputError) as error:
    return reason_of(error)
  if made.artefact.launch != artefact.launch:
    return f"it is launched with {artefact.launch}, not {made.artefact.launch}"
  for name, data in made.files.items():
    if files[name] != data:
      return f"the {name} is not what a build makes"
  if to_document(made.artefact) != to_document(artefact):
    return "the manifest is not what a build makes"
  if not has_facts(records, made.facts):
    return "no static record has its figures"
  return ""
