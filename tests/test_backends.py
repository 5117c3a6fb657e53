"""Which backend runs: the environment variable, `use_backend`, what is said about backends that cannot run, and when Numba is imported."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import adaptive_search as asx
from adaptive_search.backends import PREFERENCE, current, get, missing

NATIVE = [name for name in asx.backends() if name != "numba"]


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter without the variable that may have forced the backend of this one."""
    inherited = {name: value for name, value in os.environ.items() if name != "ADAPTIVE_SEARCH_BACKEND"}
    return subprocess.run(
        [sys.executable, "-c", code], env=inherited | environment, capture_output=True, text=True, timeout=300, check=False
    )


def test_backends_are_listed_best_first() -> None:
    names = asx.backends()
    assert names
    assert names == [name for name in PREFERENCE if name in names]
    assert {name: missing(name) for name in names} == dict.fromkeys(names, "")


def test_the_best_backend_is_chosen_without_a_wish() -> None:
    run = run_python("import adaptive_search as asx; print(asx.backend() == asx.backends()[0])")
    assert run.stdout == "True\n", run.stderr


@pytest.mark.parametrize("name", asx.backends())
def test_the_variable_forces_a_backend(name: str) -> None:
    code = (
        "import numpy as np, adaptive_search as asx\nfrom adaptive_search.backends import current\n"
        "found = asx.top_k(np.ones(3, np.float32), np.eye(3, dtype=np.float32), 2)\n"
        "print(asx.backend(), current().name, found.ids.tolist())"
    )
    run = run_python(code, ADAPTIVE_SEARCH_BACKEND=name)
    assert run.stdout == f"{name} {name} [0, 1]\n", run.stderr


def test_an_unknown_name_in_the_variable_fails_at_import() -> None:
    run = run_python("import adaptive_search", ADAPTIVE_SEARCH_BACKEND="avx1024")
    assert run.returncode != 0
    message = run.stderr.splitlines()[-1]
    assert message.startswith("ValueError: ADAPTIVE_SEARCH_BACKEND: no backend 'avx1024' here")
    assert asx.backends()[0] in message
    for name in PREFERENCE:
        assert missing(name) in message


def test_a_backend_that_cannot_run_says_why() -> None:
    hidden = """
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in ("numba", {name!r}) else real(name, *rest)
"""
    without_numba = hidden.format(name="") + "import adaptive_search as asx\nwith asx.use_backend('numba'): pass"
    if NATIVE:
        run = run_python(without_numba)
        assert "ValueError: use_backend: no backend 'numba' here" in run.stderr
        assert "numba is not installed" in run.stderr
    run = run_python(hidden.format(name="adaptive_search._native") + "import adaptive_search")
    assert run.stderr.splitlines()[-1].startswith("ImportError: adaptive_search has no backend on this machine")
    assert "this installation has no native code" in run.stderr
    assert "numba is not installed" in run.stderr


def test_a_broken_native_module_explains_itself(tmp_path: Path) -> None:
    broken = tmp_path / "_native.so"
    broken.write_bytes(b"not a shared object")
    code = f"""
import importlib.machinery, importlib.util, sys
class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "adaptive_search._native":
            loader = importlib.machinery.ExtensionFileLoader(name, {str(broken)!r})
            return importlib.util.spec_from_file_location(name, {str(broken)!r}, loader=loader)
sys.meta_path.insert(0, Finder)
import adaptive_search
"""
    run = run_python(code)
    message = run.stderr.splitlines()[-1]
    assert message.startswith("ImportError: the native module of adaptive_search is installed")
    assert str(broken) in message
    assert "ADAPTIVE_SEARCH_PURE_PYTHON" in message
    assert "direct cause" in run.stderr


@pytest.mark.skipif(not NATIVE or "numba" not in asx.backends(), reason="needs a native target and Numba")
def test_numba_is_imported_only_when_chosen() -> None:
    best = next(name for name in asx.backends() if name != "numba")
    code = """
import sys
import numpy as np, adaptive_search as asx
rows = np.eye(3, dtype=np.float32)
asx.backends(), asx.top_k(rows, rows, 1), asx.ProductQuantizer, asx.Index, asx.get_threads()
print("numba" in sys.modules)
with asx.use_backend("numba"):
    asx.top_k(rows, rows, 1)
print("numba" in sys.modules)
"""
    run = run_python(code, ADAPTIVE_SEARCH_BACKEND=best)
    assert run.stdout == "False\nTrue\n", run.stderr


@pytest.mark.parametrize("name", asx.backends())
def test_use_backend_switches_and_returns(name: str) -> None:
    before = asx.backend()
    with asx.use_backend(name):
        assert asx.backend() == current().name == name
        seen: list[str] = []
        thread = threading.Thread(target=lambda: seen.append(asx.backend()))
        thread.start()
        thread.join()
        assert seen == [name]
    assert asx.backend() == before


def test_use_backend_returns_after_an_error() -> None:
    before = asx.backend()
    with pytest.raises(RuntimeError, match="inside"), asx.use_backend(asx.backends()[-1]):
        raise RuntimeError("inside")
    assert asx.backend() == before


@pytest.mark.parametrize("name", ["", "AVX2", "avx1024", None, 3])
def test_use_backend_refuses_unknown_names_before_anything_changes(name: object) -> None:
    before = asx.backend()
    with pytest.raises(ValueError, match="use_backend: no backend .* here. Available: .*" + asx.backends()[0]), asx.use_backend(name):  # type: ignore[arg-type]
        pass
    assert asx.backend() == before


def test_a_backend_is_one_object() -> None:
    for name in asx.backends():
        assert get(name) is get(name)
        assert get(name).name == name


@pytest.mark.skipif("numba" not in asx.backends(), reason="needs Numba")
def test_numba_has_no_c_kernels() -> None:
    with asx.use_backend("numba"), pytest.raises(ValueError, match="'numba', has no C kernels"):
        asx.kernel_address("dot_f32")


@pytest.mark.skipif(bool(NATIVE), reason="has native code")
def test_a_pure_python_installation_has_no_header() -> None:
    with pytest.raises(FileNotFoundError, match="no native code"):
        asx.get_include()


def test_the_package_exports_what_it_says() -> None:
    for name in asx.__all__:
        assert getattr(asx, name) is not None
    assert set(asx.__all__) <= set(dir(asx))
    with pytest.raises(AttributeError, match="no attribute 'search'"):
        asx.search  # noqa: B018


def test_searching_alone_needs_no_file_format() -> None:
    code = "import sys, numpy as np, adaptive_search as asx; asx.top_k(np.ones(2), np.eye(2), 1); print('safetensors' in sys.modules)"
    run = run_python(code)
    assert run.stdout == "False\n", run.stderr


def test_native_code_is_found_if_it_is_installed() -> None:
    assert bool(NATIVE) == (importlib.util.find_spec("adaptive_search._native") is not None)


def test_a_target_that_replaces_few_kernels_has_all_the_others() -> None:
    native = pytest.importorskip("adaptive_search._native", reason="built without native code")
    targets = {target.name: target for target in native.targets()}
    if "avx512_bf16" not in targets:
        pytest.skip("not built for this processor")
    whole, replaced = targets["avx512"], targets["avx512_bf16"]
    for kernel in ("dot_f32", "cosine_f32", "l2_bf16", "dot_i8", "hamming_u8"):
        assert replaced.kernel_address(kernel) == whole.kernel_address(kernel) != 0
    assert replaced.kernel_address("kernels") != whole.kernel_address("kernels")
    assert "avx512bf16" not in whole.missing
    assert not whole.missing or whole.missing in replaced.missing.replace("avx512bf16, ", "")


def test_results_do_not_depend_on_the_backend() -> None:
    rng = np.random.default_rng(0)
    rows, queries = rng.standard_normal((300, 33), dtype=np.float32), rng.standard_normal((7, 33), dtype=np.float32)
    answers = []
    for name in asx.backends():
        with asx.use_backend(name):
            found = asx.top_k(queries, rows, 10, metric="cosine")
            answers.append((found.ids.tobytes(), found.scores.tobytes()))
    assert len(set(answers)) == 1
