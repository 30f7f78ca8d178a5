"""Reports in a real Chromium: what it draws, says, and how quickly."""

import base64
import contextlib

import pytest

from esper_jax.nissa.report import writing
from tests.nissa.run_files import (
  event,
  line,
  long_run,
  planted,
  recorded,
  write,
)

pytestmark = pytest.mark.services
FLAGS = (
  "--headless",
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
)
EVIL = "</script><img src=x onerror='document.title=1'><script>document.title=1"


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
  from selenium import webdriver  # only where services are tested

  options = webdriver.ChromeOptions()
  options.binary_location = "/usr/bin/chromium"
  for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('user')}"):
    options.add_argument(flag)
  options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
  service = webdriver.ChromeService("/usr/bin/chromedriver")
  chromium = webdriver.Chrome(options, service)
  yield chromium
  chromium.quit()
  with contextlib.suppress(AttributeError):  # or its end is a warning
    service.process.wait(10)


class Browser:
  """A tab and what is asked of it."""

  def __init__(self, driver):
    self.driver = driver

  def open(self, path, *, scheme="light", media="", width=1200):
    self.command(
      "Emulation.setEmulatedMedia",
      media=media,
      features=[{"name": "prefers-color-scheme", "value": scheme}],
    )
    self.command(
      "Emulation.setDeviceMetricsOverride",
      width=width,
      height=900,
      deviceScaleFactor=1,
      mobile=False,
    )
    self.driver.get("about:blank")
    self.driver.get(path.as_uri())

  def command(self, name, **options):
    return self.driver.execute_cdp_cmd(name, options)

  def js(self, expression):
    return self.driver.execute_script(f"return {expression}")

  def press(self, key):
    for kind in ("keyDown", "keyUp"):
      self.command("Input.dispatchKeyEvent", type=kind, key=key, code=key)

  def check_quiet(self):
    assert self.driver.get_log("browser") == []

  def style(self, selector, name):
    return self.js(
      f"getComputedStyle(document.querySelector('{selector}')).{name}"
    )


@pytest.fixture
def browser(driver):
  return Browser(driver)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
  """Reports of one run, of two, of a long one and of one that has begun."""
  folder = tmp_path_factory.mktemp("pages")
  grown, control = (recorded(folder, name) for name in ("grown", "control"))
  runs = {
    "one": grown,
    "long": long_run(folder / "long"),
    "begun": write(folder / "begun"),
  }
  found = {name: path / "report.html" for name, path in runs.items()}
  for path in runs.values():
    writing.write_run(path)
  found["two"] = folder / "comparison.html"
  writing.write_comparison([grown, control], found["two"])
  return found


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["one", "two", "long", "begun"])
def test_it_renders_without_an_error_and_fetches_nothing(
  browser, pages, name, scheme
):
  browser.open(pages[name], scheme=scheme)
  browser.check_quiet()
  assert browser.js("performance.getEntriesByType('resource').length") == 0
  assert browser.js("document.querySelector('h1').offsetHeight") > 20
  dark = browser.style("body", "backgroundColor") == "rgb(19, 20, 22)"
  assert dark == (scheme == "dark")


@pytest.mark.parametrize("name", ["one", "two", "long"])
def test_no_chart_is_empty(browser, pages, name):
  browser.open(pages[name])
  sizes = browser.js(
    "[...document.querySelectorAll('svg.chart')].map(svg => Math.min("
    "...[...svg.querySelectorAll('path.s')].map(p => p.getTotalLength())))"
  )
  assert len(sizes) == 4
  assert min(sizes) > 150
  blocks = browser.js("document.querySelectorAll('svg.wide .stage').length")
  assert blocks > 10
  # Nothing is drawn beside its picture, where it could not be seen.
  outside = browser.js(
    "[...document.querySelectorAll('figure > svg, .scroll > svg')].filter("
    "svg => [...svg.querySelectorAll('path, rect, text, circle')].some(e => {"
    " const a = e.getBoundingClientRect(), b = svg.getBoundingClientRect();"
    " return a.left < b.left - 1 || a.right > b.right + 1"
    " || a.bottom > b.bottom + 1 })).length"
  )
  assert outside == 0


def test_links_lead_to_their_sections(browser, pages):
  browser.open(pages["one"])
  targets = browser.js(
    "[...document.querySelectorAll('nav a')].map(a => a.hash.slice(1))"
  )
  assert len(targets) == 8
  for name in targets:
    link = browser.driver.find_element("css selector", f"nav a[href='#{name}']")
    browser.driver.execute_script("arguments[0].click()", link)
    assert browser.js("location.hash") == f"#{name}"
    assert browser.js(f"document.getElementById('{name}').offsetHeight") > 20


def test_a_comparison_leads_to_the_reports(browser, pages):
  browser.open(pages["two"])
  link = browser.js("document.querySelector('.each a').href")
  browser.driver.get(link)
  assert browser.js("document.title") == "grown"


def test_the_pointer_shows_values(browser, pages):
  browser.open(pages["one"])
  chart = browser.driver.find_element("css selector", "svg.chart")
  browser.driver.execute_script("arguments[0].scrollIntoView()", chart)
  box = browser.js(
    "document.querySelector('svg.chart').getBoundingClientRect().toJSON()"
  )
  browser.command(
    "Input.dispatchMouseEvent",
    type="mouseMoved",
    x=box["x"] + box["width"] * 0.995,
    y=box["y"] + 60,
  )
  words = browser.js("document.getElementById('tip').innerText").splitlines()
  assert words == ["epoch 30", "train 0.0052671", "validation 0.12006"]
  browser.command("Input.dispatchMouseEvent", type="mouseMoved", x=1, y=1)
  assert browser.js("document.getElementById('tip').hidden")


def test_the_keyboard_shows_values(browser, pages):
  browser.open(pages["one"])
  tip = "document.getElementById('tip')"
  browser.press("Tab")
  browser.js("document.querySelector('svg.chart').focus()")
  for _ in range(17):
    browser.press("ArrowLeft")
  words = browser.js(f"{tip}.innerText").splitlines()
  assert words[0] == "epoch 13"
  assert words[-1] == "conv3x3 in slot3_1 permanent"
  browser.press("Home")
  assert browser.js(f"{tip}.innerText").startswith("epoch 1\n")
  browser.press("Escape")
  assert browser.js(f"{tip}.hidden")


def test_arrow_keys_go_from_block_to_block(browser, pages):
  browser.open(pages["one"])
  blocks = "document.querySelector('svg.wide').querySelectorAll('[tabindex]')"
  order = browser.js(f"[...{blocks}].map(b => b.getAttribute('tabindex'))")
  assert order == ["0"] + ["-1"] * (len(order) - 1)
  browser.js(f"{blocks}[0].focus()")
  browser.press("ArrowRight")
  label = browser.js("document.activeElement.getAttribute('aria-label')")
  assert label == "slot1_1, epochs 21 to 22: training (conv3x3)"
  assert browser.js("document.getElementById('tip').innerText") == label
  browser.press("ArrowLeft")
  browser.press("ArrowLeft")  # nothing is before the first
  assert browser.js(f"document.activeElement === {blocks}[0]")


@pytest.mark.parametrize("name", ["one", "two", "long", "begun"])
def test_a_narrow_page_does_not_scroll_sideways(browser, pages, name):
  browser.open(pages[name], width=400)
  root = "document.documentElement"
  assert browser.js(f"{root}.scrollWidth") <= browser.js(f"{root}.clientWidth")


@pytest.mark.parametrize("name", ["one", "two"])
def test_it_prints_dark_on_white_and_whole(browser, pages, name):
  browser.open(pages[name], scheme="dark", media="print")
  assert browser.style("body", "backgroundColor") == "rgb(255, 255, 255)"
  assert browser.style("body", "color") == "rgb(0, 0, 0)"
  assert browser.style("nav", "display") == "none"
  printed = browser.command("Page.printToPDF", printBackground=True)
  assert base64.b64decode(printed["data"]).startswith(b"%PDF")
  closed = "document.querySelectorAll('details:not([open])').length"
  assert browser.js(closed) == 0


def test_a_script_in_a_name_does_not_run(browser, tmp_path):
  path = write(
    tmp_path,
    lines=[line(1, {EVIL: "TRAINING"})],
    events=[
      event("run_started", 0),
      planted(1, EVIL, key=EVIL),
      event("culled", 1, slot=EVIL, reason=EVIL, contribution=0.5),
    ],
  )
  writing.write_run(path)
  browser.open(path / "report.html")
  browser.check_quiet()
  assert browser.js("document.title") == path.name
  assert browser.js("document.images.length") == 0
  cell = browser.js("document.querySelector('#seeds tbody th').textContent")
  assert cell == EVIL


def test_a_long_run_opens_quickly(browser, pages):
  assert pages["long"].stat().st_size < 3_000_000
  browser.open(pages["long"])
  seconds = browser.js(
    "performance.getEntriesByType('navigation')[0].loadEventEnd / 1000"
  )
  assert 0 < seconds < 2


def test_a_run_that_goes_on_is_looked_at_again(browser, pages):
  browser.open(pages["begun"])
  assert browser.js("document.documentElement.dataset.reload") == "yes"
  browser.open(pages["one"])
  assert browser.js("document.documentElement.dataset.reload") is None
