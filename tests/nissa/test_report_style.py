"""Colours of the report: they can be read, in light and in dark."""

import re
from pathlib import Path

import pytest

from esper_jax.nissa.report import page

STYLE = (Path(page.__file__).parent / "style.css").read_text()


def schemes():
  """Light and dark: name -> colour; dark keeps what it does not change."""
  blocks = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
  light, dark = (
    dict(re.findall(r"--(\w+): (#[0-9a-f]{3,6})", block))
    for block in blocks[:2]
  )
  return {"light": light, "dark": {**light, **dark}}


def luminance(colour):
  parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
  linear = [
    v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts
  ]
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
  """WCAG 2's ratio, 1 to 21."""
  low, high = sorted((luminance(one), luminance(other)))
  return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["ink", "soft", "link", "good", "bad"])
def test_text_can_be_read(scheme, name):
  colours = schemes()[scheme]
  for ground in ("page", "panel"):
    assert contrast(colours[name], colours[ground]) >= 4.5
  assert contrast(colours["ink"], colours["warn"]) >= 4.5


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_is_drawn_can_be_seen(scheme):
  colours = schemes()[scheme]
  drawn = [f"s{n}" for n in range(6)] + ["holding", "fossilized", "culled"]
  for name in drawn:
    assert contrast(colours[name], colours["panel"]) >= 3.0, name


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_letters_can_be_read_on_their_stages(scheme):
  colours = schemes()[scheme]
  for name in ("germinated", "training", "blending"):
    assert contrast(colours["dark"], colours[name]) >= 4.5, name
  for name in ("holding", "fossilized", "culled"):
    assert contrast(colours["pale"], colours[name]) >= 3.0, name


def test_every_colour_that_is_used_is_known():
  known = schemes()["light"]
  assert set(re.findall(r"var\(--(\w+)\)", STYLE)) <= set(known)
