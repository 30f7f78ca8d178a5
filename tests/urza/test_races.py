"""Two processes write and ask one registry: nothing is torn, nothing lost.

ESPER_TEST_FULL=1 does so 1,000 times instead of 25 times.
"""

import subprocess
import sys
from pathlib import Path

from esper_jax.urza import upkeep
from tests.urza import making

ROOT = Path(__file__).parents[2]
TIMES = 1000 if making.FULL else 25
WRITER = """
import os, sys
from pathlib import Path
from tests.urza import making

os.environ["XDG_CACHE_HOME"] = sys.argv[4]
folder, mine, times = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
registry = making.registry(folder)
known = set()
print("ready", flush=True)
sys.stdin.readline()
for n in range(times):
  shared = registry.put(*making.artefact(n))  # both put this one
  own = registry.put(*making.artefact(times * (1 + mine) + n))
  for key in (shared, own):
    registry.append(key, making.interpret(writer=mine, turn=n))
  registry.append(shared, making.static())  # and both say the same of it
  if n % 10 == 0:
    registry = making.registry(folder)
  found = {one.key for one in registry.query()}
  known |= {shared, own}
  assert known <= found, "an entry was lost"
  for key in (shared, own, min(found), max(found)):
    registry.load(key)  # Damaged, if anything was torn
    records = registry.record(key).evidence
    if key in (shared, own):
      assert any(r.get("writer") == mine for r in records), "a record was lost"
  registry.keep("policies", "latest", {"writer": mine, "turn": n}, b"%d" % n)
  document, blob = registry.kept("policies", "latest")
  assert blob == b"%d" % document["turn"], "a document was torn"
"""


def test_two_processes_lose_and_tear_nothing(tmp_path):
  folder, cache = tmp_path / "registry", tmp_path / "cache"
  folder.mkdir(mode=0o700)
  writers = [
    subprocess.Popen(
      [sys.executable, "-c", WRITER, str(folder), str(n), str(TIMES), cache],
      cwd=ROOT,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    for n in range(2)
  ]
  try:
    for writer in writers:  # they start together
      assert writer.stdout.readline() == "ready\n"
    for writer in writers:
      writer.stdin.write("go\n")
      writer.stdin.flush()
    assert [writer.wait(timeout=500) for writer in writers] == [0, 0]
  finally:
    for writer in writers:
      writer.kill()
      writer.communicate()
  registry = making.registry(folder)
  assert len(registry.keys()) == 3 * TIMES
  for n in range(TIMES):
    records = registry.record(making.artefact(n)[0].key).evidence
    writers_of = sorted(r["writer"] for r in records if "writer" in r)
    assert writers_of == [0, 1]
    assert len(records) == 3
  assert upkeep.verify(registry) == ()
  assert list(registry.folders[0].temporaries()) == []
