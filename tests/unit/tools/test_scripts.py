"""The scripts that make runs: the installation, the notebook checks, benchmarks and lock files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nbformat
import pytest
from support.paths import ROOT
from support.scripts import load

SCRIPTS = ROOT / "scripts"


class TestInstall:
    install = load("install")

    def test_progress_follows_pips_output(self) -> None:
        progress = self.install.Progress("cpu.txt", 3)
        assert str(progress) == "downloading 0/3: cpu.txt"
        progress.read("Requirement already satisfied: torch==2.13.0+cpu in ./x (from -r y)\n")
        progress.read("Collecting aiohttp==3.14.5 (from -r cpu.txt (line 6))\n")
        progress.read("  Downloading aiohttp-3.14.5-cp311-cp311-any.whl (1.9 MB)\n")
        assert str(progress) == "downloading 2/3: aiohttp==3.14.5"
        progress.read("Processing /a/wheel/attrs-26.1.0-py3-none-any.whl (from -r cpu.txt)\n")
        assert str(progress) == "downloading 3/3: attrs==26.1.0"
        progress.read("Installing collected packages: attrs, aiohttp\n")
        assert str(progress) == "installing 1/2: attrs"

    def test_progress_counts_installed_packages(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(self.install, "VENV", tmp_path)
        progress = self.install.Progress("cpu.txt", 2)
        progress.read("Installing collected packages: attrs, aiohttp\n")
        package = self.install.site_packages() / "attrs-26.1.0.dist-info"
        package.mkdir(parents=True)
        assert str(progress) == "installing 1/2: attrs"
        (package / "INSTALLER").write_text("pip")
        assert str(progress) == "installing 2/2: aiohttp"

    def test_an_incomplete_package_is_removed_so_that_pip_installs_it_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(self.install, "VENV", tmp_path)
        complete, incomplete = (self.install.site_packages() / f"{n}-1.dist-info" for n in "ab")
        for package in (complete, incomplete):
            package.mkdir(parents=True)
            (package / "METADATA").write_text("Version: 1")
        (complete / "INSTALLER").write_text("pip")
        self.install.remove_incomplete_packages()
        assert list(self.install.site_packages().iterdir()) == [complete]

    @pytest.mark.parametrize(
        ("errors", "runs"),
        [
            ("ERROR: No matching distribution found for attrs==26.1.0", 1),
            ("WARNING: Retrying (Retry(total=4\nERROR: No matching distribution found for a", 2),
            ("ERROR: Connection broken: IncompleteRead", 2),
        ],
    )
    def test_pip_runs_again_if_the_network_may_have_failed(
        self, errors: str, runs: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls: list[list[str]] = []

        def fail(arguments: list[str], _: object) -> str:
            calls.append(arguments)
            return errors

        monkeypatch.setattr(self.install, "run_pip", fail)
        with pytest.raises(self.install.PipError, match=re.escape(errors)):
            self.install.pip(["attrs==26.1.0"], "attrs")
        assert len(calls) == runs

    def test_an_incomplete_wheelhouse_is_reported_with_the_command_that_fills_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(_: Path) -> None:
            raise self.install.PipError("ERROR: No matching distribution found for a")

        (tmp_path / "a-1-py3-none-any.whl").touch()
        monkeypatch.setattr(self.install, "VENV", tmp_path / ".venv")
        monkeypatch.setattr(self.install, "PYTHON", tmp_path / "python")
        monkeypatch.setattr(self.install, "create_venv", lambda _: None)
        monkeypatch.setattr(self.install, "install", fail)
        monkeypatch.setattr(self.install.os, "environ", {"WHEELHOUSE": str(tmp_path)})
        with pytest.raises(self.install.SetupError, match=r"for a\n.*make wheelhouse"):
            self.install.main()

    @pytest.mark.parametrize("version", [(3, 9, 2), (3, 10, 13), (3, 14, 0)])
    def test_other_pythons_are_refused_with_their_version(
        self, version: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(self.install.sys, "version_info", version)
        with pytest.raises(self.install.SetupError) as caught:
            self.install.check_host()
        assert "Python must be 3.11 or newer and older than 3.14" in str(caught.value)
        assert f"is Python {'.'.join(map(str, version))}" in str(caught.value)

    def test_an_unknown_accelerator_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ACCELERATOR", "tpu")
        with pytest.raises(self.install.SetupError, match="must be cpu or gpu, got 'tpu'"):
            self.install.find_accelerator()

    @pytest.mark.parametrize(
        ("listing", "status", "expected"),
        [("GPU 0: NVIDIA H100", 0, "gpu"), ("No devices found", 0, "cpu"), ("", 9, "cpu")],
    )
    def test_the_profile_follows_nvidia_smi(
        self,
        listing: str,
        status: int,
        expected: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        tool = tmp_path / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\necho '{listing}'\nexit {status}\n")
        tool.chmod(0o755)
        monkeypatch.delenv("ACCELERATOR", raising=False)
        monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
        assert self.install.find_accelerator() == expected


class TestNotebooks:
    notebooks = load("notebooks")

    def faults(self, notebook: nbformat.NotebookNode) -> list[str]:
        return list(self.notebooks.faults(notebook))

    def notebook(self, *sources: str) -> nbformat.NotebookNode:
        """A notebook in good form, with one code cell a source after its parameters."""
        make = nbformat.v4.new_code_cell
        cells = [make("rate = 4.0", metadata={"tags": ["parameters"]}), *map(make, sources)]
        return nbformat.v4.new_notebook(
            cells=cells, metadata={"kernelspec": dict(self.notebooks.KERNEL)}
        )

    def test_a_clean_notebook_has_no_faults(self) -> None:
        assert self.faults(self.notebook("x = 1\n" * 15)) == []
        shown = "import workbench as wb\nfigure = await wb.draw()\nwb.show(figure)"
        assert self.faults(self.notebook(shown)) == []

    @pytest.mark.parametrize(
        ("source", "fault"),
        [
            ("x = 1\n" * 16, "cell 2 has 16 lines of code; at most 15"),
            ("!ls", "cell 2 calls the shell or a magic"),
            ("class A: ...", "cell 2 defines a class"),
            ("from serving.errors import SpecError", "cell 2 imports serving.errors"),
            ("def f():\n    import ray", "cell 2 imports ray"),
            (
                "wb.show(a)\nwb.show(b)",
                "cell 2 calls show before its last line, so the figure is not displayed",
            ),
        ],
    )
    def test_cells_are_short_and_plain(self, source: str, fault: str) -> None:
        assert self.faults(self.notebook(source)) == [fault]

    def test_the_blueprint_may_be_a_class_of_25_lines(self) -> None:
        notebook = self.notebook("class A:\n" + "    x = 1\n" * 24)
        notebook.cells[1].metadata["tags"] = ["blueprint"]
        assert self.faults(notebook) == []
        notebook.cells[1].source += "    y = 1\n"
        assert self.faults(notebook) == ["cell 2 has 26 lines of code; at most 25"]

    def test_what_a_run_leaves_is_found_and_stripped(self) -> None:
        notebook = self.notebook("1 + 1")
        notebook.metadata["papermill"] = {"duration": 1.0}
        notebook.metadata["widgets"] = {}
        del notebook.metadata["kernelspec"]
        notebook.cells[1].metadata["papermill"] = {}
        notebook.cells[1].execution_count = 3
        notebook.cells[1].outputs = [nbformat.v4.new_output("stream", text="2")]
        assert len(self.faults(notebook)) == 4
        self.notebooks.strip(notebook)
        assert self.faults(notebook) == []
        nbformat.validate(notebook)

    def test_a_notebook_needs_its_cell_of_parameters(self) -> None:
        notebook = self.notebook()
        notebook.cells[0].metadata = {}
        assert self.faults(notebook) == ["needs exactly one code cell with the tag `parameters`"]


class TestBench:
    bench = load("bench")

    def test_only_a_line_in_the_contracts_form_is_a_result(self) -> None:
        result = dict.fromkeys(("name", "figures", "goals", "met", "machine", "versions", "date"))
        assert self.bench.is_result(json.dumps(result))
        del result["met"]
        assert not self.bench.is_result(json.dumps(result))
        assert not self.bench.is_result("done")
        assert not self.bench.is_result("[]")


class TestLock:
    lock = load("lock")

    @pytest.mark.parametrize(
        ("marker", "expected"),
        [
            ("python_full_version < '3.14'", ""),
            ("platform_python_implementation != 'PyPy'", ""),
            ("python_full_version < '3.12'", " ; python_version < '3.12'"),
            ("platform_machine == 'x86_64'", " ; platform_machine == 'x86_64'"),
        ],
    )
    def test_markers_are_shortened(self, marker: str, expected: str) -> None:
        line = f"a==1 ; {marker} and sys_platform == 'linux'"
        assert self.lock.simplify(line) == f"a==1{expected}"

    def test_a_line_for_other_systems_holds_nowhere(self) -> None:
        assert self.lock.scope("a==1 ; sys_platform == 'win32'") == "nowhere"

    def test_an_entry_keeps_its_hashes(self) -> None:
        hashes = "".join(f" \\\n    --hash=sha256:{digit * 64}" for digit in "ab")
        entry = f"a==1 ; sys_platform == 'linux'{hashes}"
        assert self.lock.simplify(entry) == f"a==1{hashes}"

    PAGE = """
    <a href="/torch-2.13.0%2Bcpu-cp311-cp311-manylinux_2_28_x86_64.whl#sha256={a}"
       >torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl</a>
    <a href="/x#sha256={b}">torch-2.13.0+cpu-cp313-cp313-manylinux_2_28_aarch64.whl</a>
    <a href="/x#sha256={c}">torch-2.13.0+cpu-cp314-cp314-manylinux_2_28_x86_64.whl</a>
    <a href="/x#sha256={c}">torch-2.13.0+cpu-cp313-cp313t-manylinux_2_28_x86_64.whl</a>
    <a href="/x#sha256={c}">torch-2.13.0+cpu-cp312-cp312-win_amd64.whl</a>
    <a href="/x#sha256={c}">torch-2.12.0+cpu-cp312-cp312-manylinux_2_28_x86_64.whl</a>
    """

    def test_hashes_of_torchs_cpu_build_are_those_of_supported_targets(self) -> None:
        a, b, c = (digit * 64 for digit in "abc")
        page = self.PAGE.format(a=a, b=b, c=c)
        assert self.lock.find_hashes(page, "2.13.0+cpu") == [a, b]

    def test_without_pytorchs_index_the_lock_keeps_its_hashes(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        index = tmp_path / "torch-index.txt"
        index.write_text("--extra-index-url https://127.0.0.1:9/whl\n")
        monkeypatch.setattr(self.lock, "INDEX_FILE", index)
        monkeypatch.setattr(self.lock, "REQUIREMENTS", tmp_path)
        entry = f"torch==2.13.0+cpu \\\n    --hash=sha256:{'a' * 64}"
        (tmp_path / "cpu.txt").write_text(f"{entry}\n")
        assert self.lock.lock_cpu_build("torch==2.13.0+cpu") == entry
        with pytest.raises(
            self.lock.LockError, match=r"no hashes for torch==2\.14\.0\+cpu.*reached"
        ):
            self.lock.lock_cpu_build("torch==2.14.0+cpu")


class TestImageTest:
    image_test = load("image_test")

    def test_missing_tools_are_named_with_the_command_that_installs_them(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            self.image_test.shutil, "which", lambda tool: "debootstrap" not in tool or None
        )
        with pytest.raises(self.image_test.ImageTestError, match=r"apt-get install debootstrap$"):
            self.image_test.check_host()

    def test_another_python_than_the_bases_is_refused(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(self.image_test.shutil, "which", lambda tool: f"/usr/bin/{tool}")
        monkeypatch.setattr(self.image_test.os, "geteuid", lambda: 0)
        monkeypatch.setattr(self.image_test.sys, "version_info", (3, 12, 1))
        with pytest.raises(self.image_test.ImageTestError, match=r"PYTHON=python3\.11"):
            self.image_test.check_host()
