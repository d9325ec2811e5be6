"""Build the docs site in build/site; `make docs` runs it.

MkDocs, in an environment of its own (build/docs), reads build/site-sources, which this script
fills: the repository's pages at their own paths, the notebooks from docs/gallery, the API from the
packages, and the slides. A broken link ends the build.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import docs_notebooks
import docs_reference
import docs_sources
from docs_slides import write_slides
from docs_sources import ROOT, SLIDES, SOURCES
from tool_environment import install
from torch_index import PipError

LOCK = ROOT / "requirements" / "docs.txt"
ENVIRONMENT = ROOT / "build" / "docs"
SITE = ROOT / "build" / "site"
QUIET = {"NO_MKDOCS_2_WARNING": "1"}  # Material prints an announcement otherwise


def main() -> None:
    """Build the site."""
    install(LOCK, ENVIRONMENT)
    for note in write_sources():
        print(f"docs: {note}")
    command = [str(ENVIRONMENT / "bin" / "mkdocs"), "build", "--strict"]
    built = subprocess.run(
        command, cwd=ROOT, env=os.environ | QUIET, stderr=subprocess.PIPE, text=True, check=False
    )
    if built.returncode:
        sys.exit(f"docs: MkDocs has failed:\n{built.stderr}")
    print(f"docs: open {(SITE / 'index.html').relative_to(ROOT)}")


def write_sources() -> list[str]:
    """Fill build/site-sources, and return what a reader of the output should know."""
    shutil.rmtree(SOURCES, ignore_errors=True)
    generated = generated_pages()
    docs_sources.copy_assets()
    docs_sources.copy_pages(generated)
    docs_reference.write_reference()
    docs_reference.write_glossary()
    write_slides()
    return docs_notebooks.write_notebooks(generated | set(docs_sources.pages()))


def generated_pages() -> set[str]:
    """Return the paths of the pages that no file of the repository has."""
    notebooks = {docs_notebooks.page_of(path) for path in docs_notebooks.NOTEBOOKS.glob("*.ipynb")}
    others = {docs_notebooks.OVERVIEW, docs_reference.GLOSSARY_PAGE, *SLIDES.values()}
    return notebooks | others | set(docs_reference.pages())


if __name__ == "__main__":
    try:
        main()
    except PipError as error:
        sys.exit(f"docs: {error}")
