"""The command line of the registry: `python -m esper_jax.urza --help`."""

import argparse
import importlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from esper_jax import commands
from esper_jax.commands import FAILED, OK
from esper_jax.oona.jsonl import plain
from esper_jax.types import InputError, counted
from esper_jax.urza import archive, evidence, kept, listing, upkeep
from esper_jax.urza.artefact import Damaged, to_document
from esper_jax.urza.folder import places
from esper_jax.urza.listing import NEVER_RAN, not_timed
from esper_jax.urza.orders import in_options
from esper_jax.urza.registry import Registry, open_registry

# Options that say which artefacts, and what they are.
WHICH = {
  "kernel": "name of the kernel",
  "target": "compute capability, e.g. 80 or sm_80",
  "dtype": "of the activations, e.g. bfloat16",
}
# Commands of other modules, which are imported when they are asked for:
# command -> (module, what it does).
ELSEWHERE = {
  "build": ("author", "compile kernels and store them"),
  "tune": ("tuning", "time every way to cut a kernel's work, on a GPU"),
  "validate": ("validation", "check artefacts and store what was found"),
  "probe": ("probe", "try an artefact on this machine's device"),
}

CODES = {
  "probe": "Exit codes: 0 it may be used, 1 it may not, 2 bad input, 3 it was"
  " not judged: no GPU, or it cannot be read."
}


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command and returns its exit code.

  0: done; 1: something is damaged or failed; 2: bad input, in one line.
  """
  return commands.run(_run, argv)


def _run(argv: list[str]) -> int:
  try:
    options = _parser(argv[0] if argv else "").parse_args(argv)
    return options.run(options)
  except InputError as error:
    raise InputError(in_options(error)) from error
  except Damaged as damage:
    print(f"damaged: {damage}", file=sys.stderr)
    return FAILED


def _parser(command: str) -> argparse.ArgumentParser:
  """Makes the parser.

  Args:
    command: that is going to be run; only its module is imported.
  """
  parser = argparse.ArgumentParser(
    prog=".venv/bin/python -m esper_jax.urza",
    description="Compiled kernels, and what is known of them.",
  )
  subparsers = parser.add_subparsers(metavar="COMMAND", required=True)

  def add(
    name: str, run: Callable[[argparse.Namespace], int], what: str
  ) -> argparse.ArgumentParser:
    sub = subparsers.add_parser(name, help=what, description=f"{what}.")
    sub.set_defaults(run=run)
    sub.add_argument(
      "--dir", default="", help="another layer, and the one that is written to"
    )
    sub.add_argument(
      "--trusted",
      action="append",
      default=[],
      metavar="DIR",
      help="a layer that may be used although others can write to it",
    )
    return sub

  add("verify", _verify, "check every hash and every rule of evidence")
  sub = add("list", _list, "show all artefacts, and what was done with them")
  for name, what in WHICH.items():
    sub.add_argument(f"--{name}", help=what)
  sub.add_argument(
    "--device", help="a kind, e.g. 'NVIDIA H100 80GB HBM3': status there"
  )
  sub = add("show", _show, "show one artefact and its evidence as JSON")
  sub.add_argument("key", help="or how it begins, from 4 characters on")
  sub = add("query", _query, "find artefacts; the quickest first")
  for name, what in WHICH.items():
    sub.add_argument(f"--{name}", help=what)
  sub.add_argument("--tags", default="", help="all of these, as in a,b")
  sub.add_argument("--max_latency_us", type=float)
  sub.add_argument("--device", help="the kind whose runs count")
  sub.add_argument(
    "--status", choices=list(evidence.Status), help="on --device"
  )
  sub = add("gc", _gc, "delete blobs that nothing names, and torn files")
  sub.add_argument("--dry_run", action="store_true", help="delete nothing")
  sub = add("import", _import, "put what an archive holds into a layer")
  sub.add_argument("archive", type=Path)
  sub.add_argument("--sha256", help="what `export` said; must fit")
  sub = add("export", _export, "write an archive, and its SHA-256")
  sub.add_argument("archive", type=Path)
  sub.add_argument("keys", nargs="*", help="of artefacts; all unless given")
  for name, (module, what) in ELSEWHERE.items():
    sub = subparsers.add_parser(
      name, help=what, description=f"{what}.", epilog=CODES.get(name)
    )
    if name == command:
      found = importlib.import_module(f"esper_jax.urza.{module}")
      found.add_arguments(sub)
      sub.set_defaults(run=found.main)
  return parser


def _open(options: argparse.Namespace, *, make: bool = False) -> Registry:
  return open_registry(options.dir, trusted=options.trusted, make=make)


def _wanted(options: argparse.Namespace, registry: Registry) -> listing.Wanted:
  asked = {name: getattr(options, name) for name in WHICH}
  listing.check_device(registry, options.device)
  return listing.wanted(registry, **asked)


def _verify(options: argparse.Namespace) -> int:
  registry = _open(options)
  problems = upkeep.verify(registry)
  for problem in problems:
    print(problem)
  count = len(registry.keys())
  wrong = counted(len(problems), "problem") if problems else "no problems"
  found = f"{counted(count, 'artefact')}, {wrong}"
  print(f"{found}; looked at {places(registry.folders)}")
  return FAILED if problems else OK


def _list(options: argparse.Namespace) -> int:
  registry = _open(options)
  which = _wanted(options, registry)
  *shown, summary = listing.lines(registry, which, options.device)
  for line in shown:
    print(line)
  for kind in kept.KINDS:
    for name in registry.names(kind):
      print(f"kept: {kind}/{name}")
  print(summary)
  return OK


def _show(options: argparse.Namespace) -> int:
  registry = _open(options)
  record = registry.record(listing.key_of(registry, options.key))
  artefact, records = record.artefact, record.evidence
  kinds = evidence.device_kinds(records)
  document = {
    "key": artefact.key,
    "handle": artefact.spec.handle,
    "layer": str(record.layer),
    "manifest": to_document(artefact),
    "tags": evidence.tags(artefact, records),
    "status": {kind: evidence.status(records, kind) for kind in kinds},
    "elsewhere": evidence.status(records, ""),
    "ran": "on " + ", ".join(kinds) if kinds else not_timed(records),
    "speedup": {kind: evidence.speedup(records, kind) for kind in kinds},
    "evidence": plain(records),
  }
  print(json.dumps(document, indent=2))
  return OK


def _query(options: argparse.Namespace) -> int:
  registry = _open(options)
  which = _wanted(options, registry)
  tags = [tag for tag in options.tags.split(",") if tag]
  found = registry.query(
    kernel=which.kernel,
    target=which.target,
    tags=listing.check_tags(tags),
    max_latency_us=options.max_latency_us,
    status=options.status,
    device_kind=options.device,
  )
  never = NEVER_RAN if options.device is None else "not run there"
  count = 0
  for one in found:
    try:
      artefact = registry.record(one.key).artefact
    except (KeyError, Damaged):
      continue  # it went meanwhile
    if not which.fits(artefact):
      continue
    count += 1
    us = one.latency_us
    time = never if us is None else f"{us:.1f} us"
    words = ", ".join(one.tags) or "no tags"
    name = f"{one.kernel}  {artefact.spec.dtype}  sm_{one.target}"
    print(f"{one.key[:12]}  {name}  {time}  {words}")
  print(f"{count} found")
  return OK


def _gc(options: argparse.Namespace) -> int:
  gone = upkeep.gc(_open(options), dry_run=options.dry_run)
  for path in gone.paths:
    print(path)
  word = "would be deleted" if options.dry_run else "deleted"
  print(f"{counted(len(gone.paths), 'file')}, {gone.bytes} bytes {word}")
  return OK


def _import(options: argparse.Namespace) -> int:
  contents = archive.import_archive(
    _open(options, make=True), options.archive, sha256=options.sha256
  )
  _tell(contents)
  return OK


def _export(options: argparse.Namespace) -> int:
  registry = _open(options)
  keys = [listing.key_of(registry, start) for start in options.keys]
  _tell(archive.export(registry, options.archive, keys or None))
  return OK


def _tell(contents: archive.Contents) -> None:
  sha256, artefacts, records, documents = contents
  print(
    f"{counted(artefacts, 'artefact')}, {counted(records, 'record')} of"
    f" evidence, {counted(documents, 'kept document')}\nsha256 {sha256}"
  )
