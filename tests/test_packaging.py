"""What is installed, what importing it loads, and how it behaves without its extras or its native module."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

import pytest

import adaptive_search as asx

PACKAGE = Path(asx.__file__).parent
PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def run_python(code: str, path: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter that finds the package under test, or another copy of it at ``path``."""
    environment = {name: value for name, value in os.environ.items() if name != "ADAPTIVE_SEARCH_BACKEND"}
    environment["PYTHONPATH"] = str(path or PACKAGE.parent)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment | variables, timeout=300)


def test_versions_agree() -> None:
    assert asx.__version__ == PROJECT["version"]
    try:
        installed = metadata("adaptive-search")
    except PackageNotFoundError:
        pytest.skip("the package is not installed, only on the path")
    assert installed["Version"] == PROJECT["version"]


def test_type_information_is_installed() -> None:
    assert (PACKAGE / "py.typed").is_file()


@pytest.mark.skipif(asx.backends() == ["numba"], reason="built without native code")
def test_the_header_is_installed() -> None:
    assert (Path(asx.get_include()) / "adaptive_search.h").is_file()


@pytest.mark.skipif(asx.backends()[0] in ("numba", "baseline"), reason="Numba is the choice on this machine")
def test_importing_loads_no_optional_package() -> None:
    optional = {"numba", "llvmlite", "typer", "rich", "tqdm", "matplotlib", "ml_dtypes"}
    done = run_python(f"import sys, adaptive_search; print(*sorted({optional} & set(sys.modules)))")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_importing_starts_no_thread() -> None:
    done = run_python("import adaptive_search, threading; print(threading.active_count())")
    assert done.stdout.strip() == "1"


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_its_extra_the_command_says_what_to_install(missing: str) -> None:
    done = run_python(f"import sys; sys.modules[{missing!r}] = None; from adaptive_search.cli import main; sys.exit(main(['backends']))")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [f"adaptive-search: error: the command line needs {missing}: pip install 'adaptive-search[cli]'"]


@pytest.fixture
def pure_python_copy(tmp_path: Path) -> Path:
    shutil.copytree(PACKAGE, tmp_path / "adaptive_search", ignore=shutil.ignore_patterns("_native*", "include", "__pycache__"))
    return tmp_path


def test_without_native_code_numba_is_used(pure_python_copy: Path) -> None:
    done = run_python("import adaptive_search as asx; print(asx.__file__, *asx.backends())", pure_python_copy)
    assert done.returncode == 0, done.stderr
    file, *backends = done.stdout.split()
    assert Path(file).is_relative_to(pure_python_copy)
    assert backends == ["numba"]


def test_a_broken_native_module_is_an_error_and_no_fallback(pure_python_copy: Path) -> None:
    suffix = ".pyd" if sys.platform == "win32" else ".so"
    (pure_python_copy / "adaptive_search" / f"_native{suffix}").write_bytes(b"no library")
    done = run_python("import adaptive_search", pure_python_copy)
    assert done.returncode != 0
    assert "ImportError" in done.stderr
    assert "_native" in done.stderr


def test_the_command_is_declared() -> None:
    assert PROJECT["scripts"] == {"adaptive-search": "adaptive_search.cli:main"}


def test_runtime_dependencies_are_few() -> None:
    unconditional = {name.partition(">")[0] for name in PROJECT["dependencies"] if ";" not in name}
    assert unconditional == {"numpy", "safetensors"}
