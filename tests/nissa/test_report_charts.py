"""Axes, curves, the timeline, the waterfall and the network as SVG."""

import json
import re

import pytest

from esper_jax.nissa.report import curves, network, record, timeline, waterfall
from esper_jax.nissa.report.axis import Axis, short
from esper_jax.nissa.report.curves import Curve, Mark
from esper_jax.nissa.report.growth import Seed
from tests.nissa.run_files import Page, line, planted, recorded, shapes, write
from tests.nissa.run_files import event as made

STARTED = made("run_started", 0, policy="heuristic")


def chart(points, **options):
  options = {"up": "nats", **options}
  drawn = curves.chart("Loss", [Curve("train", points)], **options)
  return Page(drawn)


def numbers(path):
  return [float(x) for x in re.findall(r"-?[\d.]+", path["d"])]


def test_an_axis_puts_its_ends_at_its_ends():
  axis = Axis(2.0, 4.0, 100.0, 0.0)
  assert (axis(2.0), axis(3.0), axis(4.0)) == (100.0, 50.0, 0.0)
  log = Axis(0.01, 1.0, 100.0, 0.0, True)
  assert log(0.1) == pytest.approx(50.0)


@pytest.mark.parametrize(
  ("axis", "ticks"),
  [
    (Axis(0.0, 10.0, 0, 1), [0, 2, 4, 6, 8, 10]),
    (Axis(0.87, 1.01, 0, 1), [0.9, 0.95, 1.0]),
    (Axis(-0.02, 0.03, 0, 1), [-0.02, -0.01, 0, 0.01, 0.02, 0.03]),
    (Axis(0.1, 2.0, 0, 1, True), [0.1, 0.2, 0.5, 1, 2]),
    (Axis(0.004, 2.3, 0, 1, True), [0.01, 0.03, 0.1, 0.3, 1]),
    (Axis(1e-6, 100.0, 0, 1, True), [10.0**n for n in range(-6, 3)]),
  ],
)
def test_ticks_are_round(axis, ticks):
  assert axis.ticks() == pytest.approx(ticks)


@pytest.mark.parametrize(
  ("ends", "ticks"),
  [((0.5, 1.5), [1]), ((0.5, 3.5), [1, 2, 3]), ((0.5, 30.5), [10, 20, 30])],
)
def test_epochs_are_whole(ends, ticks):
  assert Axis(*ends, 0, 1).whole_ticks(4) == ticks


@pytest.mark.parametrize(
  ("value", "text"),
  [(0.05, "0.05"), (0, "0"), (1200.0, "1,200"), (3.5e6, "3.5 M")],
)
def test_labels_of_ticks(value, text):
  assert short(value) == text


def test_a_curve_goes_through_its_points():
  page = chart([(1, 4.0), (2, 2.0), (3, 3.0)])
  (path,) = shapes(page, "Loss", "path", "s0")
  x1, y1, _, x2, y2, x3, y3 = numbers(path)
  assert x2 - x1 == pytest.approx(x3 - x2, abs=0.2)
  assert y1 < y3 < y2  # down the page is less
  assert y2 - y1 == pytest.approx(2 * (y2 - y3), abs=0.2)
  assert page.texts["title"] == ["Loss: train from 4 to 3"]


def test_a_curve_has_a_gap_where_nothing_is_known():
  page = chart([(1, 1.0), (2, None), (3, 2.0), (4, 3.0)])
  (path,) = shapes(page, "Loss", "path", "s0")
  assert path["d"].count("M") == 2
  assert path["d"].count("L") == 1


def test_a_value_that_holds_is_drawn_in_steps():
  drawn = curves.chart("P", [Curve("p", [(1, 1.0), (2, 3.0)], True)], up="")
  (path,) = shapes(Page(drawn), "P", "path", "s0")
  assert re.fullmatch(r"M[\d.,]+h0H[\d.]+V[\d.]+", path["d"])


def test_the_steep_start_is_cut_and_the_chart_says_so():
  points = [(1, 0.1), *((n, 0.9 + n / 1000) for n in range(2, 20)), (20, 0.1)]
  page = chart(points, clip=True, unit="%")
  (path,) = shapes(page, "Loss", "path", "s0")
  ys = numbers(path)[1::2]
  (svg,) = shapes(page, "Loss", "svg", "chart")
  assert ys[0] == ys[-1] == 228.0  # it enters and leaves at the lower end
  assert max(ys) == 228.0 < float(svg["viewbox"].split()[3])
  assert page.texts["p"][-1].startswith("Values of the steep start")
  whole = chart(points)
  assert whole.texts["p"] == ["nats"]


def test_losses_of_zero_have_no_logarithm():
  page = chart([(1, 1.0), (2, 0.0)], logarithmic=True)
  assert len(shapes(page, "Loss", "path", "s0")) == 1
  logarithmic = chart([(1, 1.0), (2, 0.01)], logarithmic=True)
  ticks = logarithmic.texts["text"]
  assert {"0.01", "0.1", "1"} <= set(ticks)


@pytest.mark.parametrize("points", [[], [(1, None)]])
def test_a_chart_without_a_point_is_words(points):
  page = chart(points)
  assert page.texts["p"] == ["No epoch is over yet."]
  assert "svg" not in page.texts


def test_a_chart_of_one_point_has_a_dot():
  (path,) = shapes(chart([(1, 0.5)]), "Loss", "path", "s0")
  assert path["d"].endswith("h0")


def test_marks_stand_at_their_epochs_and_tell():
  marks = [
    Mark(2, "planted", "a in x planted"),
    Mark(2, "planted", "b in y planted"),
    Mark(3, "fossilized", "a in x permanent"),
    Mark(1, "trouble", "rolled back to here"),
  ]
  page = chart([(1, 1.0), (2, 2.0), (3, 3.0)], marks=marks)
  signs = shapes(page, "Loss", "path", "sign")
  assert len(signs) == 3
  assert page.texts["title"][1:] == [
    "epoch 2: a in x planted; b in y planted",
    "epoch 3: a in x permanent",
    "epoch 1: rolled back to here",
  ]
  (curve,) = shapes(page, "Loss", "path", "s0")
  assert f"translate({numbers(curve)[3]:.1f}" in signs[0]["transform"]
  assert len(shapes(page, "Loss", "line", "at")) == 3
  told = json.loads(page.texts["script"][0])
  assert [2, "b in y planted"] in told["marks"]
  assert told["curves"][0]["points"] == [[1, 1.0], [2, 2.0], [3, 3.0]]


def test_a_mark_beside_the_curves_is_on_the_axis():
  page = chart([(2, 1.0), (3, 2.0)], marks=[Mark(0, "trouble", "back")])
  (sign,) = shapes(page, "Loss", "path", "sign")
  (svg,) = shapes(page, "Loss", "svg", "chart")
  at = float(re.search(r"[\d.]+", sign["transform"])[0])
  assert float(svg["data-left"]) < at < float(svg["data-right"])


def test_a_crowd_of_marks_is_smaller_and_without_lines():
  marks = [Mark(n, "planted", "a") for n in range(1, 30)]
  page = chart([(n, 1.0 * n) for n in range(1, 30)], marks=marks)
  signs = shapes(page, "Loss", "path", "sign")
  assert all("scale(.6)" in sign["transform"] for sign in signs)
  assert shapes(page, "Loss", "line", "at") == []


def test_strokes_differ():
  assert len({curves.stroke(n) for n in range(24)}) == 24


def test_spans_of_a_slot():
  stages = "DORMANT GERMINATED TRAINING TRAINING DORMANT TRAINING".split()
  lines = [line(n, {"a": s}) for n, s in enumerate(stages, start=1)]
  del lines[2]["slots/a/blueprint"]
  found = timeline.spans(lines, "a")
  assert [span[:3] for span in found] == [
    (2, 2, "GERMINATED"),
    (3, 4, "TRAINING"),
    (6, 6, "TRAINING"),
  ]
  lines[3]["slots/a/blueprint"] = "dense"  # another seed
  assert len(timeline.spans(lines, "a")) == 4


def test_the_timeline_of_the_recorded_run(tmp_path):
  run = record.read(recorded(tmp_path))
  page = Page(timeline.draw(run))
  blocks = [
    b
    for b in shapes(page, "Slots over the epochs", "rect", "stage")
    if "aria-label" in b
  ]
  labels = [b["aria-label"] for b in blocks]
  assert (
    "slot3_1, epochs 10 to 11: blending (conv3x3), last contribution +0.0033"
    " nats" in labels
  )
  assert "slot3_1, epochs 26 to 30: fossilized" in labels
  assert len(labels) == sum(
    len(timeline.spans(run.lines, slot)) for slot in run.slots
  )
  heights = {
    b["class"].split()[1]: float(b["height"])
    for b in blocks
    if b["class"].split()[1] != "embargoed"
  }
  order = ("germinated", "training", "blending", "holding", "fossilized")
  assert sorted(order, key=heights.__getitem__) == list(order)
  letters = [t for t in page.texts["text"] if len(t) == 1 and t.isalpha()]
  assert set(letters) == set("GTBHFC")


@pytest.mark.parametrize(
  ("lines", "says"),
  [
    ([], "The host has no slots."),
    ([line(1)], "The host has no slots."),
    ([line(1, {"a": "DORMANT", "b": "DORMANT"})], "All 2 slots were dormant"),
  ],
)
def test_a_timeline_with_nothing_to_show_is_words(tmp_path, lines, says):
  run = record.read(write(tmp_path, lines=lines))
  assert says in timeline.draw(run)


def test_a_timeline_before_the_first_epoch_is_words(tmp_path):
  slots = {"a": {"stage": "DORMANT"}}
  ended = [STARTED, made("run_finished", 0, status="failed", reason="x")]
  path = write(
    tmp_path,
    events=ended,
    result={"status": "failed", "epochs": 0, "slots": slots},
  )
  assert "No epoch is over yet." in timeline.draw(record.read(path))


def seed(slot, contribution, fate, error=0.01):
  return Seed(slot, "dense", "dense", 72, 1, "X", fate, 5, contribution, error)


def bars(page):
  return [
    (float(b["x"]), float(b["x"]) + float(b["width"]), b["class"].split()[1])
    for b in shapes(page, "What each seed contributed", "rect", "bar")
  ]


def test_what_stayed_adds_up_and_what_was_culled_does_not():
  seeds = [
    seed("a", 0.2, "fossilized"),
    seed("b", -0.1, "culled"),
    seed("c", 0.1, "fossilized"),
    seed("d", None, "culled"),
  ]
  page = Page(waterfall.draw(seeds))
  a, b, c, total = bars(page)
  assert [x[2] for x in (a, b, c, total)] == ["stays", "gone", "stays", "total"]
  assert b[1] == pytest.approx(a[1], abs=0.2)
  assert c[0] == pytest.approx(a[1], abs=0.2)
  assert total[:2] == pytest.approx((a[0], c[1]), abs=0.2)
  assert c[1] - c[0] == pytest.approx((a[1] - a[0]) / 2, abs=0.2)
  assert "+0.3000 (2 of 3)" in page.texts["text"]
  assert "\u22120.1000 \u00b1 0.0100 culled" in page.texts["text"]


def test_what_stayed_and_hurts_is_told_apart():
  page = Page(waterfall.draw([seed("a", -0.1, "fossilized")]))
  (bar, _) = shapes(page, "What each seed contributed", "rect", "bar")
  assert bar["class"] == "bar stays hurts"


def test_a_contribution_without_an_error_has_no_whisker():
  page = Page(waterfall.draw([seed("a", 0.0, "alive", None)]))
  assert "+0.0000 alive" in page.texts["text"]
  assert "whisker" not in waterfall.draw([seed("a", 0.0, "alive", None)])
  assert "whisker" in waterfall.draw([seed("a", 0.0, "alive")])


def test_a_waterfall_of_nothing_is_words():
  assert "No seed was planted." in waterfall.draw([])
  unknown = waterfall.draw([seed("a", None, "culled")])
  assert "No contribution has been measured." in unknown


def test_the_network_of_the_recorded_run(tmp_path):
  page = Page(network.draw(record.read(recorded(tmp_path))))
  words = page.texts["text"]
  title = "The network, before and after"
  assert {"880 parameters", "5,520 parameters", "after"} <= set(words)
  assert len(shapes(page, title, "circle", "empty")) == 3 + 2
  (pill,) = shapes(page, title, "rect", "pill")
  assert pill["class"] == "pill fossilized"
  assert pill["aria-label"] == (
    "slot3_1: conv3x3 with 4,640 parameters, planted after epoch 8, fossilized"
  )
  assert words.count("slot3_1") == 2


def test_the_network_of_a_run_that_goes_on(tmp_path):
  stages = {f"s{n}{lane}": "TRAINING" for n in range(14) for lane in ("", "#2")}
  path = write(
    tmp_path,
    lines=[line(1, stages)],
    events=[
      STARTED,
      *(planted(1, "s3", lane=0, key=f"seed_{n}") for n in range(9)),
      planted(1, "s3", lane=1),
    ],
  )
  drawn = network.draw(record.read(path))
  page = Page(drawn)
  assert page.texts["text"].count("s3") == 2
  assert "now" in page.texts["text"]
  pills = shapes(page, "The network, before and after", "rect", "pill")
  assert len(pills) == 10
  right = max(float(p["x"]) + float(p["width"]) for p in pills)
  (svg,) = shapes(page, "The network, before and after", "svg", "wide")
  assert right < float(svg["viewbox"].split()[2])


def test_a_network_that_is_not_known_yet_is_words(tmp_path):
  assert "Not known yet." in network.draw(record.read(write(tmp_path)))
