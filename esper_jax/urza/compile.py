"""Compiles kernels with Triton on any Linux machine; no GPU is needed.

The same spec gives the same bytes, wherever the kernel's file stands, on every
Python that the project supports, and whatever Triton has on disk: there are no
line numbers, PTX has a version that we choose, and Triton's cache is not asked.
They are also the bytes that jax_triton makes of the same call.
"""

import contextlib
import hashlib
import importlib
import importlib.metadata
import os
import threading
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from esper_jax import commands
from esper_jax.types import InputError
from esper_jax.urza import assembler
from esper_jax.urza.artefact import Artefact, File, Launch, Spec
from esper_jax.urza.kernel import Form, Kernel, Tiles

# PTX 8.7 is that of CUDA 12.8: older than what any jaxlib assembles it with.
# What Triton chooses by itself is too new for the CUDA 12.9 of jax[cuda12].
OPTIONS: tuple[tuple[str, int | bool], ...] = (
  ("enable_fp_fusion", True),
  ("num_ctas", 1),
  ("ptx_version", 87),
)
_LAUNCH = ("num_warps", "num_stages")  # of the tiles; not in the source
_ALIGNED = [["tt.divisibility", 16]]  # of pointers; XLA aligns them to more
# What is set here reaches into Triton's passes, and so into the bytes.
_MEDDLING = (
  "ALLOW_LHS_TMEM_LAYOUT_CONVERSION",
  "DISABLE_LLVM_OPT",
  "DISABLE_MMA_V3",
  "DISABLE_MMA_V5",
  "LLVM_EXTRACT_DI_LOCAL_VARIABLES",
  "LLVM_PASS_PLUGIN_PATH",
  "TRITON_ENABLE_ASAN",
  "TRITON_F32_DEFAULT",
  "TRITON_FORCE_DISABLE_FP_FUSION",
  "TRITON_INSTRUMENTATION_MODE",
  "TRITON_INTERPRET",
  "TRITON_KERNEL_DUMP",
  "TRITON_LIBDEVICE_PATH",
  "TRITON_OVERRIDE_ARCH",
  "TRITON_PLUGIN_PATHS",
)


class _Shared:
  """Triton's settings, which belong to the process: how many use ours."""

  lock = threading.RLock()
  users = 0
  undo = contextlib.ExitStack()


class CompilationError(Exception):
  """A kernel has no code for this form, these tiles and this target.

  The text is one line that says why.
  """


class Compiled(NamedTuple):
  """What became of a kernel.

  Attributes:
    artefact: its manifest.
    files: "ptx" and "ttir", as the artefact says.
    facts: figures of a `static` record, without when and by what it was made.
    cubin: machine code for the artefact's own target.
  """

  artefact: Artefact
  files: dict[str, bytes]
  facts: dict[str, Any]
  cubin: bytes


def triton_version() -> str:
  """The version of Triton that is installed; does not import it.

  Raises:
    InputError: it is not installed.
  """
  try:
    return importlib.metadata.version("triton")
  except importlib.metadata.PackageNotFoundError:
    raise InputError(
      "kernels are compiled with Triton, which is not installed; on Linux, in"
      f" the repository: {commands.pip()} install -e '.[triton]'"
    ) from None


def spec_of(kernel: Kernel, form: Form, tiles: Tiles, target: int) -> Spec:
  """What decides the bytes of a kernel, with the Triton that is installed.

  Args:
    kernel: what is compiled.
    form: of the call.
    tiles: one of `kernel.tiles(form)`.
    target: compute capability, one of `assembler.TARGETS`.

  Raises:
    InputError: unknown target, or Triton is not installed.
  """
  if target not in assembler.TARGETS:
    known = ", ".join(map(str, assembler.TARGETS))
    raise InputError(f"unknown target {target}; kernels compile for {known}")
  return Spec(
    kernel=kernel.name,
    source=kernel.source.digest,
    signature=form.signature,
    constants=form.constants,
    tiles=tuple(sorted(tiles.items())),
    options=OPTIONS,
    target=target,
    triton=triton_version(),
  )


def compile_kernel(
  kernel: Kernel, form: Form, tiles: Tiles, target: int
) -> Compiled:
  """Compiles a kernel; arguments as of `spec_of`.

  i32 scalars are never specialised: one code serves every value. Pointers are
  taken to be aligned to 16 bytes.

  Raises:
    InputError: unknown target, Triton is not installed, or a variable of the
      environment would change what it makes.
    CompilationError: see there.
  """
  return compile_spec(kernel, spec_of(kernel, form, tiles, target))


def compile_spec(kernel: Kernel, spec: Spec) -> Compiled:
  """Compiles a kernel again from what is stored about it.

  Args:
    kernel: the one that the spec names.
    spec: what decides the bytes.

  Raises:
    InputError: as `compile_kernel`; or the spec is of another source or another
      version of Triton, or needs scratch memory or clusters.
    CompilationError: see there.
  """
  _check(kernel, spec)
  with reproducible():
    ttir, ptx, metadata = _lower(kernel, spec)
  warps = dict(spec.tiles)["num_warps"]
  _refuse_unlaunchable(metadata, warps)
  assembled = assembler.assemble(ptx, spec.target)
  shared = int(metadata["shared"])
  facts = assembler.facts(assembled, ptx, spec.target, shared)
  files = {"ptx": ptx, "ttir": ttir}
  artefact = Artefact(
    spec=spec,
    launch=Launch(metadata["name"], warps, shared),
    files={
      name: File(hashlib.sha256(data).hexdigest(), len(data))
      for name, data in files.items()
    },
  )
  return Compiled(artefact, files, facts, assembled.cubin)


@contextlib.contextmanager
def reproducible() -> Iterator[None]:
  """Has Triton, inside the block, write no line numbers.

  It holds for all threads while any is inside. What it changes, the
  environment of the process included, is put back.

  Raises:
    InputError: a variable of the environment changes what Triton makes.
  """
  set_by_user = [name for name in _MEDDLING if os.environ.get(name)]
  if set_by_user:
    raise InputError(
      f"{' and '.join(set_by_user)} would change what Triton makes of kernels:"
      " unset it"
    )
  knobs = _import("triton.knobs")
  with _Shared.lock:
    if not _Shared.users:
      _Shared.undo.enter_context(knobs.compilation.scope())
      knobs.compilation.disable_line_info = True
    _Shared.users += 1
  try:
    yield
  finally:
    with _Shared.lock:
      _Shared.users -= 1
      if not _Shared.users:
        _Shared.undo.close()


def _import(name: str) -> Any:
  triton_version()
  with _Shared.lock:  # imported by two threads at once, Triton fails
    return importlib.import_module(name)


def _check(kernel: Kernel, spec: Spec) -> None:
  if (kernel.name, kernel.source.digest) != (spec.kernel, spec.source):
    raise InputError(
      f"{spec.kernel} was compiled from a source that is not here any more"
    )
  if spec.triton != triton_version():
    raise InputError(
      f"{spec.kernel} was compiled with Triton {spec.triton}, and"
      f" {triton_version()} is installed: {commands.pip()} install"
      f" triton=={spec.triton}"
    )
  if spec.options != OPTIONS:
    raise InputError(f"{spec.kernel} was compiled with options {spec.options}")
  names = [name for name, _ in spec.signature] + list(_constants(spec))
  if sorted(names) != sorted(kernel.source.parameters):
    parameters = ", ".join(kernel.source.parameters)
    raise CompilationError(
      f"its form and tiles give {', '.join(names)}; its parameters are"
      f" {parameters}"
    )


def _constants(spec: Spec) -> dict[str, int]:
  """All constants of the source."""
  tiles = {name: v for name, v in spec.tiles if name not in _LAUNCH}
  return {**dict(spec.constants), **tiles}


def _lower(kernel: Kernel, spec: Spec) -> tuple[bytes, bytes, dict[str, Any]]:
  """TTIR as written, before any pass; PTX; and what Triton found out.

  The steps are those of triton.compile up to PTX, without its cache.
  """
  compiler = _import("triton.compiler")
  backends = _import("triton.backends.compiler")
  ir = _import("triton._C.libtriton").ir
  with _Shared.lock:
    function = kernel.source.activate()
    _refuse_globals(function)
  target = backends.GPUTarget("cuda", spec.target, 32)
  backend = compiler.make_backend(target)
  launch = {name: dict(spec.tiles)[name] for name in _LAUNCH}
  options = backend.parse_options({**dict(spec.options), **launch})
  constants = _constants(spec)
  source = compiler.ASTSource(
    function,
    dict(spec.signature) | dict.fromkeys(constants, "constexpr"),
    constants,
    {
      (n,): _ALIGNED if type_.startswith("*") else []
      for n, (_, type_) in enumerate(spec.signature)
    },
  )
  context = ir.context()
  ir.load_dialects(context)
  backend.load_dialects(context)
  stages: dict[str, Any] = {}
  backend.add_stages(stages, options, source.language)
  metadata: dict[str, Any] = {}
  try:
    # Python 3.11 may fail when two threads parse (SystemError: AST constructor
    # recursion depth mismatch).
    with _Shared.lock:
      module = source.make_ir(
        target,
        options,
        backend.get_codegen_implementation(options),
        backend.get_module_map(),
        context,
      )
    ttir = str(module)
    for name, stage in stages.items():
      if name != "cubin":
        module = stage(module, metadata)
  except Exception as error:  # Triton raises all sorts
    raise CompilationError(_reason(error)) from error
  return ttir.encode(), module.encode(), metadata


def _reason(error: BaseException) -> str:
  """Why Triton gave up, and at which line of the source, in one line."""
  place, seen = "", error
  while True:  # a helper's error lies below its caller's
    source, node = getattr(seen, "src", None), getattr(seen, "node", None)
    if source and node is not None:
      place = f", at {source.splitlines()[node.lineno - 1].strip()!r}"
    if seen.__cause__ is None:
      break
    seen = seen.__cause__
  message = getattr(seen, "error_message", None) or str(seen)
  lines = [line.strip() for line in str(message).splitlines() if line.strip()]
  return f"{type(seen).__name__}: {lines[-1] if lines else ''}{place}"


def _refuse_globals(function: Any) -> None:
  """A kernel's identity is its text alone, which must say everything."""
  _ = function.cache_key  # finds the names
  names = sorted({name for name, _ in function.used_global_vals})
  if names:
    raise CompilationError(
      f"it uses {', '.join(names)} of its module, whose values are not part of"
      " its identity: make them constants of the kernel"
    )


def _refuse_unlaunchable(metadata: Mapping[str, Any], warps: int) -> None:
  """What the launch, as we write it, cannot give a kernel."""
  scratch = ("global_scratch_size", "profile_scratch_size")
  if any(metadata.get(kind) for kind in scratch):
    raise CompilationError("it needs scratch memory, which launches lack")
  if metadata.get("tensordesc_meta"):
    raise CompilationError("it needs tensor descriptors, which launches lack")
  if metadata.get("num_warps", warps) != warps:
    raise CompilationError("it adds warps of its own, which launches lack")
