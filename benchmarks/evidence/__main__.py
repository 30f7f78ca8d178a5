"""Runs a suite of paired arms and reports on it.

  .venv/bin/python -m benchmarks.evidence run --suite=digits --seeds=10
  .venv/bin/python -m benchmarks.evidence run --suite=digits --list
  .venv/bin/python -m benchmarks.evidence run --suite=digits --only=B4/0
  .venv/bin/python -m benchmarks.evidence report runs/evidence/digits

Running the same command again goes on: a finished arm x seed is not rerun.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.evidence import report, runner, suites
from esper_jax.commands import BAD_INPUT, FAILED, OK
from esper_jax.types import InputError

_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command line; returns its exit code.

  0: all that was asked for is there; 1: some of it failed or was not run; 2:
  bad input, nothing was started; 130: interrupted.
  """
  options, flags = _parser().parse_known_args(argv)
  try:
    if options.command == "report":
      if flags:
        raise InputError(f"report takes no {flags[0]}")
      out = report.write(Path(options.source), options.out)
      print(f"wrote {out / 'report.md'} and {out / 'report.html'}")
      return OK
    return _run(options, flags)
  except InputError as error:
    print(f"error: {error}", file=sys.stderr)
    return BAD_INPUT


def _run(options: argparse.Namespace, flags: Sequence[str]) -> int:
  suite = suites.load(options.suite)
  job = runner.Job(
    suite=suite,
    root=Path(options.dir or Path("runs", "evidence", suite.name)),
    flags=tuple(flags),
    policy=options.policy,
    policy_name=options.policy_name,
    keep=options.keep_checkpoints,
  )
  if options.only:
    return _run_only(job, runner.parse_item(options.only))
  names = tuple(options.arms.split(",")) if options.arms else suite.arms
  if options.policy and "P" not in names:
    names = (*names, "P")
  count = suite.seeds if options.seeds is None else options.seeds
  seeds = range(options.first, options.first + count)
  work = runner.items(["A1p" if n == "A1'" else n for n in names], seeds)
  runner.check_root(job, work)
  if options.list:
    for item in work:
      print(f"{item}\t{runner.state(job, item)}")
    return OK
  left = runner.run_all(
    job, work, jobs=options.jobs, tell=lambda line: print(line, flush=True)
  )
  print(f"{len(work) - len(left)} of {len(work)} are done, in {job.root}")
  return FAILED if left else OK


def _run_only(job: runner.Job, item: runner.Item) -> int:
  runner.check_root(job, [item, *runner.needs(item)])
  try:
    runner.run_one(job, item)
  except KeyboardInterrupt:
    print(f"{item}: interrupted; the same command goes on", file=sys.stderr)
    return _INTERRUPTED
  except InputError:
    raise
  except Exception as error:
    print(f"{item}: failed: {error}", file=sys.stderr)
    return FAILED
  print(f"{item}: done")
  return OK


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog=".venv/bin/python -m benchmarks.evidence",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  commands = parser.add_subparsers(dest="command", required=True)
  run = commands.add_parser(
    "run",
    help="run what is not done yet",
    epilog="--config.SECTION.KEY=VALUE changes a key of every arm's config.",
    allow_abbrev=False,
  )
  add = run.add_argument
  add("--suite", required=True, help=", ".join(suites.names()))
  add("--seeds", type=int, help="number of seeds (default: the suite's)")
  add("--first", type=int, default=0, help="the first seed (%(default)s)")
  add("--arms", default="", help="letters, by commas (default: the suite's)")
  add("--only", default="", help="one item, as ARM/SEED, in this process")
  add("--list", action="store_true", help="print the work and its state")
  add("--dir", default="", help="folder of the runs (runs/evidence/SUITE)")
  add(
    "--jobs",
    type=int,
    default=1,
    help="processes at a time; 0: all in this process (%(default)s)",
  )
  add("--policy", default="", help="file of a learned policy: adds arm P")
  add(
    "--policy_name",
    default="learned",
    help="the policy that reads it (%(default)s)",
  )
  add(
    "--keep_checkpoints",
    action="store_true",
    help="keep checkpoints once a row is written",
  )
  show = commands.add_parser("report", help="write report.md and report.html")
  show.add_argument("source", help="folder of the runs, or a file of rows")
  show.add_argument(
    "--out", help="folder to write to (default: SOURCE, or the file's folder)"
  )
  return parser


if __name__ == "__main__":
  sys.exit(main())
