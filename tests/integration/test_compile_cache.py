"""A second process compiles nothing for what the first has seen."""


def test_a_second_process_compiles_nothing(lab, same):
  # Without guesses both make the same programs.
  overrides = (
    f"tezzeret.cache_dir={lab.folder / 'programs'}",
    "tezzeret.guess_seconds=0.0",
  )
  runs = []
  for name in ("first", "second"):
    process = lab.start(name, "grow", *overrides, cached=False)
    code, _, err = process.end()
    assert code == 0, err
    runs.append(process.left)
  first, second = runs
  assert first.result["compilation"]["compiles"] > 10
  assert not all(e["on_disk"] for e in first.events("compile"))
  assert all(e["on_disk"] for e in second.events("compile"))
  bill = second.result["compilation"]
  assert bill["disk_hits"] == bill["compiles"] > 10
  # Finding programs is faster than compiling them.
  seconds = [sum(e["seconds"] for e in left.events("compile")) for left in runs]
  assert seconds[1] < seconds[0]
  same(first, second)


def test_a_folder_that_others_can_write_to_is_one_line(lab):
  folder = lab.folder / "open"
  folder.mkdir()
  folder.chmod(0o777)
  override = f"tezzeret.cache_dir={folder}"
  process = lab.start("run", "grow", override, cached=False)
  code, out, err = process.end()
  assert code == 2
  assert err.startswith("error: ")
  assert err.count("\n") == 1
  assert f"{folder} can be written by others" in err
  assert not (lab.folder / "run" / "events.jsonl").exists()
