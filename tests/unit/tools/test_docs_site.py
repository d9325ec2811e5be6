"""The docs site: its navigation, its links, and the stored runs of the notebooks."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from support.paths import NOTEBOOKS, ROOT
from support.scripts import load

from workbench.errors import SettingError

GALLERY, SOURCES = load("gallery"), load("docs_sources")
PAGES, REFERENCE = load("docs_notebooks"), load("docs_reference")
STORED = sorted(GALLERY.GALLERY.glob("*.ipynb.gz"))
FIGURE = {"data": [{"type": "scatter", "x": [1]}], "layout": {"height": 300}}


class Loader(yaml.SafeLoader):
    """Reads mkdocs.yml, which names Python objects."""


Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)


def nav_pages() -> list[str]:
    def paths(entry: Any) -> list[str]:
        match entry:
            case str():
                return [entry]
            case list():
                return [path for item in entry for path in paths(item)]
            case _:
                return [path for item in entry.values() for path in paths(item)]

    return paths(yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)["nav"])


class TestNavigation:
    def test_every_document_is_in_it_once(self) -> None:
        documents = [str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md")]
        assert len(documents) > 10
        nav = nav_pages()
        assert [path for path in documents if nav.count(path) != 1] == []

    def test_every_notebook_and_every_namespace_is_in_it(self) -> None:
        generated = [f"notebooks/{path.stem}.md" for path in NOTEBOOKS.glob("*.ipynb")]
        generated += REFERENCE.pages()
        assert "reference/figures.md" in generated
        assert sorted(set(generated) - set(nav_pages())) == []

    def test_every_core_name_is_on_one_page(self) -> None:
        core, namespaces = REFERENCE.split()
        names = [name for _, names in REFERENCE.grouped(core).values() for name in names]
        assert sorted(names) == sorted(core)
        assert {"deploy", "LoadSpec", "Session"} <= set(core)
        assert "figures" in namespaces


@pytest.mark.parametrize(
    ("link", "page", "expected"),
    [
        ("guide.md", "docs/README.md", "guide.md"),
        ("../CONTRIBUTING.md", "docs/README.md", "../CONTRIBUTING.md"),
        ("https://ray.io/x.md", "README.md", "https://ray.io/x.md"),
        ("notebooks/00_first_endpoint.ipynb", "README.md", "notebooks/00_first_endpoint.md"),
        ("slides/workshop.ipynb", "docs/slides.md", "slides/workshop.html"),
        ("nowhere.md", "docs/README.md", "nowhere.md"),
        ("LICENSE", "README.md", f"{SOURCES.REPOSITORY}/blob/main/LICENSE"),
        ("../deploy", "docs/deployment.md", f"{SOURCES.REPOSITORY}/tree/main/deploy"),
    ],
)
def test_a_link_leads_to_a_page_or_to_the_repository(link: str, page: str, expected: str) -> None:
    known = {"CONTRIBUTING.md", "docs/guide.md", "docs/slides/workshop.html"}
    known |= {"notebooks/00_first_endpoint.md"}
    text = SOURCES.with_links(f"see [it]({link}#part)", page, known)
    assert text == f"see [it]({expected}#part)"


def executed() -> nbformat.NotebookNode:
    """A notebook as papermill leaves it."""
    shown = {GALLERY.FIGURE: FIGURE, "text/html": "<script>large</script>", "text/plain": "a"}
    outputs = [
        new_output("stream", name="stdout", text="  0.3 s  m: 1 starting\n123.4 s  ready\none\n"),
        new_output("stream", name="stderr", text="noise\n"),
        new_output("stream", name="stdout", text=f"two {GALLERY.RUNS}/01 {ROOT}/docs\n"),
        new_output("execute_result", data=shown),
    ]
    cells = [
        new_markdown_cell("# 01 · A title\n\n**Question.** Why?"),
        new_code_cell("given = 1", metadata={"tags": ["injected-parameters"]}),
        new_code_cell("wb.show(a)", metadata={"papermill": {}}, outputs=outputs, execution_count=3),
    ]
    kernel = {"name": "python3", "display_name": "Python", "language": "python"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}, "papermill": {"a": 1}}
    return new_notebook(cells=cells, metadata=metadata)


class TestReduction:
    def test_what_a_page_shows_is_kept_and_the_traces_of_the_run_are_not(self) -> None:
        notebook = GALLERY.reduced(executed())
        nbformat.validate(notebook)
        assert set(notebook.metadata) == {"kernelspec", "language_info"}
        first, shown = notebook.cells
        assert first.cell_type == "markdown"
        assert (dict(shown.metadata), shown.execution_count) == ({}, None)
        text, figure = shown.outputs
        assert text.text == "one\ntwo runs/01 docs\n"
        assert figure.data == {GALLERY.FIGURE: FIGURE}

    def test_the_stored_file_has_no_time_and_can_be_read(self, tmp_path: Path) -> None:
        notebook = GALLERY.reduced(executed())
        file = GALLERY.write(notebook, tmp_path / "01.ipynb.gz")
        assert file.read_bytes()[4:8] == bytes(4)  # RFC 1952: MTIME
        assert GALLERY.read(file) == notebook

    @pytest.mark.parametrize("text", [f"sk-{'a' * 40}", f"{ROOT}/x"])
    def test_a_key_and_a_path_of_this_machine_are_refused(self, text: str, tmp_path: Path) -> None:
        notebook = new_notebook(cells=[new_markdown_cell(text)])
        with pytest.raises(SettingError, match="do not print it"):
            GALLERY.write(notebook, tmp_path / "01.ipynb.gz")
        assert not list(tmp_path.iterdir())

    def test_a_large_run_is_refused_with_its_size(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(GALLERY, "MAX_BYTES", 50)
        with pytest.raises(SettingError, match=r"\d+ bytes, at most 50 are stored"):
            GALLERY.write(GALLERY.reduced(executed()), tmp_path / "01.ipynb.gz")

    def test_the_comparison_gets_probes_of_both_rates(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(GALLERY, "RUNS", tmp_path)
        for name in ("001-at-32", "002-at-64", "003-at-32", "004-at-64", "005-at-32", "006-at-64"):
            (tmp_path / GALLERY.CURVE / "probes" / name).mkdir(parents=True)
        given = GALLERY.parameters_for(GALLERY.COMPARISON, "cpu")
        folder = f"{GALLERY.CURVE}/probes"
        assert given["baseline"] == ",".join(f"{folder}/00{n}-at-32" for n in (1, 3, 5))
        assert given["candidate"] == ",".join(f"{folder}/00{n}-at-64" for n in (2, 4, 6))
        (tmp_path / folder / "006-at-64").rmdir()
        with pytest.raises(GALLERY.WorkbenchError, match="store notebook 01 first"):
            GALLERY.parameters_for(GALLERY.COMPARISON, "cpu")


class TestPage:
    def test_outputs_follow_their_code(self) -> None:
        text = PAGES.page_text(GALLERY.reduced(executed()), "a note")
        code, printed = text.index("wb.show(a)"), text.index("two runs/01")
        assert text.index("# 01") < text.index("a note") < code < printed < text.index('"scatter"')
        assert "given = 1" not in text

    def test_the_overview_has_title_question_and_the_first_figure(self) -> None:
        entry = PAGES.card(GALLERY.reduced(executed()), Path("09_title.ipynb"))
        assert 'href="09_title.html"' in entry
        assert "<strong>01 · A title</strong><span>Why?</span>" in entry
        assert entry.count('"scatter"') == 1

    def test_texts_cannot_become_markup(self) -> None:
        assert "<b>" not in PAGES.text_html("<b>")
        figure = {"layout": {"title": {"text": "</script><b>"}}, "data": []}
        data = re.search(r">({.*})</script>", PAGES.figure_html(figure))
        assert data is not None
        assert json.loads(data[1]) == figure
        assert PAGES.figure_html(figure).count("</script>") == 1

    def test_a_long_text_is_folded_and_its_last_line_stays(self) -> None:
        page = PAGES.text_html("".join(f"line {number}\n" for number in range(40)))
        assert "<summary>40 lines</summary>" in page
        assert page.endswith("<pre>line 39</pre></div>")

    def test_a_notebook_without_a_stored_run_says_so(self) -> None:
        note = PAGES.note_of(None, executed(), Path("01_x.ipynb"))
        assert "No run of this notebook is stored" in note

    def test_a_run_of_an_earlier_notebook_says_so(self) -> None:
        stored, changed = GALLERY.reduced(executed()), GALLERY.reduced(executed())
        hardware = {"cpu": "A CPU", "cores": 2, "gpus": []}
        stored.metadata["gallery"] = {"date": "2026-01-02", "seconds": 3, "profile": "cpu"}
        stored.metadata["gallery"] |= {"parameters": {"port": 0}, "hardware": hardware}
        stored.metadata["gallery"] |= {"versions": {"vllm": "1.2", "ray": "3.4"}}
        note = PAGES.note_of(stored, stored, Path("01_x.ipynb"))
        assert "A CPU, 2 cores, no GPU; vLLM 1.2, Ray 3.4" in note
        assert "changed" not in note
        changed.cells[1].source = "wb.show(b)"
        assert "has changed since this run" in PAGES.note_of(stored, changed, Path("01_x.ipynb"))


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.name)
class TestStoredRuns:
    def test_it_is_of_a_notebook_and_small(self, path: Path) -> None:
        assert (NOTEBOOKS / path.name.removesuffix(".gz")).exists()
        assert path.stat().st_size <= 300_000

    def test_every_figure_is_there_and_the_script_can_draw_it(self, path: Path) -> None:
        notebook = GALLERY.read(path)
        # Not those that depend on a parameter (`wb.show(figure) if live else ...`).
        show = re.compile(r"^wb\.show\((?!.* if )", re.MULTILINE)
        shown = [cell for cell in notebook.cells if show.search(cell.source)]
        figures = PAGES.figures_of(notebook.cells)
        assert len(figures) == len(shown)
        small = {"bar", "box", "contour", "heatmap", "histogram", "scatter", "violin"}
        assert {trace["type"] for figure in figures for trace in figure["data"]} <= small

    def test_it_names_no_folder_of_the_machine(self, path: Path) -> None:
        text = nbformat.writes(GALLERY.read(path))
        assert re.findall(r"(?<![\w.:/])/(?:home|root|tmp|Users)/\w+", text) == []
