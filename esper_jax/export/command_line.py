"""The command line: `python -m esper_jax.export --help`."""

import argparse
import os
import sys
from collections.abc import Sequence

from esper_jax import commands
from esper_jax.oona import lineage

_ABOUT = """\
Writes the grown network of a run directory, without anything that only growth
needs: weights.safetensors and topology.json (esper_jax.load_grown), model.py
(plain Flax), network.stablehlo (jax.export; CPU and CUDA, any batch size), and
lineage.json, its history. Each is checked against the trained network.
What esper_jax.grow returns for a model of yours has .export(DIR) instead.

  .venv/bin/python -m esper_jax.export RUN --to=DIR
  .venv/bin/python -m esper_jax.export verify DIR [--head=SHA256]
"""


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command and returns its exit code.

  0: done; 1: the export failed; 2: bad input, or a file that is not what was
  exported, in one line.
  """
  return commands.run(_run, argv)


def _run(argv: list[str]) -> int:
  if argv[:1] == ["verify"]:
    _verify(argv[1:])
  else:
    _export(argv)
  return commands.OK


def _parser(program: str, about: str) -> commands.Parser:
  return commands.Parser(
    prog=program,
    description=about,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    hint="; --help shows how",
  )


def _export(argv: Sequence[str]) -> None:
  parser = _parser(".venv/bin/python -m esper_jax.export", _ABOUT)
  parser.add_argument("run", metavar="RUN", help="run directory")
  parser.add_argument(
    "--to", required=True, metavar="DIR", help="folder to make"
  )
  parser.add_argument(
    "--data_dir",
    default="",
    metavar="PATH",
    help="the run's data, where it has moved",
  )
  flags = parser.parse_args(argv)
  # Arithmetic is then float32 to the last bit, and every device stays free.
  os.environ["JAX_PLATFORMS"] = "cpu"
  from esper_jax.export import writing  # imports JAX: seconds

  done = writing.export_run(flags.run, flags.to, data_dir=flags.data_dir)
  for note in done.notes:
    print(f"note: {note}", file=sys.stderr)
  report = done.report
  print(
    f"{done.folder}: {report['parameters_exported']:,} parameters"
    f" ({report['parameters_trained']:,} in training); on"
    f" {report['examples']} validation examples logits differ by at most"
  )
  for name, difference in report["max_abs_difference"].items():
    print(f"  {name:18} {difference:.2g} (tolerance {report['tolerance']:.2g})")
  print(f"lineage head {done.head}")


def _verify(argv: Sequence[str]) -> None:
  parser = _parser(
    ".venv/bin/python -m esper_jax.export verify",
    "Checks that an export is whole and that its history leads to it.",
  )
  parser.add_argument("folder", metavar="DIR", help="folder of the export")
  parser.add_argument(
    "--head", default="", metavar="SHA256", help="head that it must have"
  )
  flags = parser.parse_args(argv)
  found = lineage.verify(flags.folder, head=flags.head)
  print(
    f"{flags.folder}: {', '.join(found.files)} are as exported; the lineage of"
    f" {found.changes} entries leads to them\nhead {found.head}"
  )
  if found.others:
    print(
      f"note: not of the export, and not checked: {', '.join(found.others)}",
      file=sys.stderr,
    )
