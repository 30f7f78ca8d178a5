"""What `make site` needs beyond MkDocs: hooks, which mkdocs.yml names.

A page may link to any file of the repository. Those outside docs/ come into the
site too, below repository/, and links to them are changed to lead there. When
the site is written every link in it is followed; one that leads nowhere is an
error.
"""

import posixpath
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = "repository"
_LINK = re.compile(r"(\]\()([^()\s#]+)((?:#[^()\s]*)?\))")


def place(path: str) -> str:
  """Where a file of the repository lies among the site's sources.

  Args:
    path: relative to the repository, as is every path below.
  """
  inside = path.startswith("docs/") and not path.endswith(".py")
  return path.removeprefix("docs/") if inside else f"{OUTSIDE}/{path}"


def original(source: str) -> str:
  """The file of the repository that a source of the site was made from."""
  inside = source.removeprefix(f"{OUTSIDE}/")
  return f"docs/{source}" if inside == source else inside


def targets(path: str, text: str) -> list[str]:
  """The files of the repository to which a page in Markdown links."""
  found = (_target(path, match[2]) for match in _LINK.finditer(text))
  return [target for target in dict.fromkeys(found) if target]


def relinked(path: str, text: str) -> str:
  """The page with the links that it needs in the site."""
  here = posixpath.dirname(place(path)) or "."

  def change(match: re.Match) -> str:
    target = _target(path, match[2])
    if not target:
      return match[0]
    return match[1] + posixpath.relpath(place(target), here) + match[3]

  return _LINK.sub(change, text)


def _target(path: str, link: str) -> str:
  """The file that a link leads to; "" where it is none of the repository."""
  joined = posixpath.normpath(posixpath.join(posixpath.dirname(path), link))
  return joined if (ROOT / joined).is_file() else ""


def outside(pages: list[str]) -> list[str]:
  """The files outside docs/ that pages link to, directly or by others."""
  seen = list(pages)
  for path in seen:  # grows while it is read
    if path.endswith(".md"):
      found = targets(path, (ROOT / path).read_text())
      seen += [target for target in found if target not in seen]
  return [path for path in seen if place(path).startswith(f"{OUTSIDE}/")]


class _Page(HTMLParser):
  """What an HTML page links to, and which anchors it has."""

  def __init__(self) -> None:
    super().__init__()
    self.links: list[str] = []
    self.anchors: set[str] = set()

  def handle_starttag(self, tag: str, attrs: list) -> None:
    """Keeps what an element links to or is called."""
    for name, value in attrs:
      if name in ("href", "src") and value:
        self.links.append(value)
      elif name == "id" or (tag, name) == ("a", "name"):
        self.anchors.add(value)


def dead_links(site: Path) -> list[str]:
  """The links of a built site that lead nowhere, as "PAGE: LINK".

  A link that begins with a slash counts: it depends on where the site lies.
  Those to other hosts are not followed.
  """
  site, pages = site.resolve(), {}
  for path in sorted(site.rglob("*.html")):
    pages[path] = _Page()
    pages[path].feed(path.read_text(encoding="utf-8"))
  dead = []
  for path, page in pages.items():
    for link in page.links:
      parts = urlsplit(link)
      if parts.scheme or parts.netloc:
        continue
      inside = not parts.path.startswith("/")
      target = (path.parent / unquote(parts.path)) if parts.path else path
      target = target.resolve()
      found = inside and target.is_file()
      if found and parts.fragment and target in pages:
        found = unquote(parts.fragment) in pages[target].anchors
      if not found:
        dead.append(f"{path.relative_to(site)}: {link}")
  return dead


def on_config(config):
  """Leaves the theme's page 404.html out: its links need a server's root."""
  config.theme.static_templates.discard("404.html")
  return config


def on_files(files, config):
  """Adds the files outside docs/ that pages link to."""
  from mkdocs.structure.files import File, InclusionLevel

  pages = [original(file.src_uri) for file in files.documentation_pages()]
  named = [
    original(source)
    for source in re.findall(
      rf"^ .*: ({OUTSIDE}/\S+)$", (ROOT / "mkdocs.yml").read_text(), re.M
    )
  ]
  for path in outside([*pages, *named]):
    file = File.generated(
      config,
      place(path),
      abs_src_path=str(ROOT / path),
      inclusion=InclusionLevel.NOT_IN_NAV,
    )
    files.append(file)
  return files


def on_page_markdown(markdown, page, config, files):
  """Changes the links of a page to those that the site needs."""
  del config, files
  return relinked(original(page.file.src_uri), markdown)


def on_post_build(config):
  """Follows every link of the site that was written."""
  from mkdocs.exceptions import PluginError

  dead = dead_links(Path(config.site_dir))
  if dead:
    listed = "\n  ".join(dead)
    raise PluginError(f"{len(dead)} links lead nowhere:\n  {listed}")
