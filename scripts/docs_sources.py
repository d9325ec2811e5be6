"""The pages of the docs site that exist in the repository, at the same paths.

A link therefore means the same on the site and on a Git host. Links to a file that the site does
not have lead to the repository.
"""

from __future__ import annotations

import gzip
import posixpath
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "build" / "site-sources"
REPOSITORY = "https://github.com/llm-serving-workbench/llm-serving-workbench"
PATTERNS = ("*.md", "docs/*.md", "benchmarks/README.md", "requirements/README.md")
IMAGES = ("docs/*.png", "docs/*.svg")
ASSETS = "assets/workbench"
VENDORED = {
    "docs/site/vendor/mermaid-tiny-11.17.2.js.gz": "mermaid.js",
    "docs/site/vendor/reveal-5.2.1.css.gz": "reveal.css",
    "docs/site/vendor/reveal-5.2.1.js.gz": "reveal.js",
    "docs/site/vendor/reveal-notes-5.2.1.js.gz": "reveal-notes.js",
    "docs/site/vendor/reveal-white-5.2.1.css.gz": "reveal-white.css",
    "workbench/assets/plotly-cartesian-4.1.1.min.js.gz": "plotly.js",
}
"""Scripts and styles of other projects, with their names on the site."""
SLIDES = {"docs/slides/workshop.ipynb": "docs/slides/workshop.html"}
SINGLE = ("README.md", "docs/tutorial.md")
"""Pages that are alone in their section, and so need no list of its pages."""
_HIDE_LIST = "---\nhide: [navigation]\n---\n\n"
_LINK = re.compile(r"(\]\()([^)\s#]+)([^)\s]*\))")


def pages() -> list[str]:
    """Return the paths of the repository's pages, relative to its root."""
    found = (path for pattern in PATTERNS for path in sorted(ROOT.glob(pattern)))
    return [str(path.relative_to(ROOT)) for path in found]


def write(path: str, text: str) -> None:
    """Write a page of the site."""
    file = SOURCES / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def copy_pages(generated: set[str]) -> None:
    """Copy the repository's pages with their images.

    Args:
        generated: The paths of the pages that are written otherwise.
    """
    images = [str(path.relative_to(ROOT)) for kind in IMAGES for path in ROOT.glob(kind)]
    for image in images:
        (SOURCES / image).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / image, SOURCES / image)
    known = {*pages(), *images, *generated}
    for page in pages():
        text = (ROOT / page).read_text(encoding="utf-8")
        text = with_scripts(with_links(text, page, known), page)
        write(page, _HIDE_LIST + text if page in SINGLE else text)


def with_links(text: str, page: str, known: set[str]) -> str:
    """Return the text of a page with links that are valid on the site.

    Args:
        text: Markdown.
        page: The path of the page.
        known: The paths of everything that the site has.
    """

    def replaced(match: re.Match[str]) -> str:
        before, link, after = match.groups()
        return before + site_link(link, page, known) + after

    return _LINK.sub(replaced, text)


def site_link(link: str, page: str, known: set[str]) -> str:
    """Return where a relative link of a page leads on the site."""
    if re.match(r"[a-z]+:", link):
        return link
    folder = posixpath.dirname(page)
    target = posixpath.normpath(posixpath.join(folder, link))
    on_site = SLIDES.get(target) or re.sub(r"^(notebooks/.*)\.ipynb$", r"\1.md", target)
    if on_site in known:
        return posixpath.relpath(on_site, folder or ".")
    if not (ROOT / target).exists():
        return link  # MkDocs reports it
    kind = "tree" if (ROOT / target).is_dir() else "blob"
    return f"{REPOSITORY}/{kind}/main/{target}"


def with_scripts(text: str, page: str) -> str:
    """Return the text of a page with the script that draws its diagrams, if it has any."""
    if "```mermaid" not in text:
        return text
    return f"{text}\n{script_tag('mermaid.js', page)}\n"


def script_tag(name: str, page: str) -> str:
    """Return the element that loads a script of the site in a page."""
    path = posixpath.relpath(f"{ASSETS}/{name}", posixpath.dirname(page) or ".")
    return f'<script src="{path}"></script>'


def copy_assets() -> None:
    """Copy the site's own scripts and styles, and unpack those of other projects."""
    folder = SOURCES / ASSETS
    folder.mkdir(parents=True)
    for file in own_assets():
        shutil.copy(file, folder)
    for packed, name in VENDORED.items():
        (folder / name).write_bytes(gzip.decompress((ROOT / packed).read_bytes()))
    theme = folder / "reveal-white.css"
    # Its first line loads a font.
    theme.write_text(re.sub(r"@import url\([^)]*\);", "", theme.read_text()))


def own_assets() -> Iterator[Path]:
    """Yield the files of docs/site that pages load."""
    for kind in ("css", "js"):
        yield from sorted((ROOT / "docs" / "site").glob(f"*.{kind}"))
