"""The C ABI: the installed header compiles as C99 and C++17, and the addresses that Python hands out can be called from C."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import adaptive_search as asx

NATIVE = [name for name in asx.backends() if name != "numba"]
if not NATIVE:
    pytest.skip("built without native code", allow_module_level=True)

POINTER = ctypes.c_void_p
SIGNATURES = {
    "dot_f32": (ctypes.c_float, np.float32, np.float32),
    "l2_f32": (ctypes.c_float, np.float32, np.float32),
    "cosine_f32": (ctypes.c_float, np.float32, np.float32),
    "dot_f16": (ctypes.c_float, np.float32, np.float16),
    "l2_f16": (ctypes.c_float, np.float32, np.float16),
    "dot_bf16": (ctypes.c_float, np.float32, np.uint16),
    "l2_bf16": (ctypes.c_float, np.float32, np.uint16),
    "dot_i8": (ctypes.c_int32, np.int8, np.int8),
    "hamming_u8": (ctypes.c_uint32, np.uint8, np.uint8),
}

PROGRAM = r"""
#include <adaptive_search.h>

/* Another index would do this in its distance callback: one kernel, its own memory. */
float nearest(asx_pair_f32 kernel, const float* query, const float* rows, uint64_t count, uint64_t dims, uint64_t* best) {
    float highest = -1e30f;
    uint64_t row;
    for (row = 0; row < count; ++row) {
        const float score = kernel(query, rows + row * dims, dims);
        if (score > highest) {
            highest = score;
            *best = row;
        }
    }
    return highest;
}

/* The same through the whole table, after the checks that its header asks for. */
int64_t dot_through_table(const asx_kernels* table, const int8_t* a, const int8_t* b, uint64_t dims) {
    if (table->abi_version != ASX_ABI_VERSION || table->struct_bytes < sizeof(asx_kernels)) return -1;
    return table->dot_i8(a, b, dims);
}

const char* target_of(const asx_kernels* table) { return table->target; }
"""


@pytest.fixture(params=NATIVE)
def target(request: pytest.FixtureRequest) -> Iterator[str]:
    with asx.use_backend(request.param):
        yield request.param


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler")
    directory = tmp_path_factory.mktemp("capi")
    source, binary = directory / "program.c", directory / "program.so"
    source.write_text(PROGRAM)
    flags = ["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", "-O1", "-fPIC", "-shared"]
    subprocess.run([compiler, *flags, f"-I{asx.get_include()}", str(source), "-o", str(binary)], check=True)
    return ctypes.CDLL(str(binary))


def address_of(array: np.ndarray) -> int:
    return array.ctypes.data


def test_a_c_program_searches_with_a_kernel(target: str, library: ctypes.CDLL) -> None:
    rng = np.random.default_rng(7)
    rows = rng.standard_normal((50, 33)).astype(np.float32)
    query = rng.standard_normal(33).astype(np.float32)
    library.nearest.restype = ctypes.c_float
    library.nearest.argtypes = [POINTER, POINTER, POINTER, ctypes.c_uint64, ctypes.c_uint64, POINTER]
    best = ctypes.c_uint64()
    score = library.nearest(asx.kernel_address("dot_f32"), address_of(query), address_of(rows), 50, 33, ctypes.addressof(best))
    exact = rows.astype(np.float64) @ query
    assert best.value == exact.argmax()
    assert score == pytest.approx(exact.max(), rel=1e-5)


def test_the_table_names_its_target_and_its_version(target: str, library: ctypes.CDLL) -> None:
    table = asx.kernel_address("kernels")
    library.target_of.restype = ctypes.c_char_p
    library.target_of.argtypes = [POINTER]
    assert library.target_of(table).decode() == target
    library.dot_through_table.restype = ctypes.c_int64
    library.dot_through_table.argtypes = [POINTER, POINTER, POINTER, ctypes.c_uint64]
    a = np.arange(-100, 27, dtype=np.int8)
    b = np.full_like(a, -128)
    assert library.dot_through_table(table, address_of(a), address_of(b), len(a)) == int(a.astype(np.int64) @ b)


def test_the_header_compiles_as_cpp(tmp_path: Path) -> None:
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    source = tmp_path / "program.cpp"
    source.write_text("#include <adaptive_search.h>\nasx_pair_f32 kernel = nullptr;\n")
    subprocess.run(
        [compiler, "-std=c++17", "-pedantic", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", f"-I{asx.get_include()}", str(source)],
        check=True,
    )


def operands(name: str, size: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Two arguments of a kernel and its float64 answer."""
    rng = np.random.default_rng(size)
    _, first, second = SIGNATURES[name]
    if name == "hamming_u8":
        a, b = (rng.integers(0, 256, size, np.uint8) for _ in range(2))
        return a, b, float(np.unpackbits(a ^ b).sum())
    if name == "dot_i8":
        a, b = (rng.integers(-128, 128, size).astype(np.int8) for _ in range(2))
        return a, b, float(a.astype(np.int64) @ b.astype(np.int64))
    a = rng.standard_normal(size).astype(first)
    if name.endswith("bf16"):
        b = (rng.standard_normal(size).astype(np.float32).view(np.uint32) >> 16).astype(second)
        values = (b.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    else:
        b = rng.standard_normal(size).astype(second)
        values = b.astype(np.float64)
    query = a.astype(np.float64)
    if name.startswith("l2"):
        return a, b, float(((query - values) ** 2).sum())
    product = float(query @ values)
    return a, b, product / float(np.linalg.norm(query) * np.linalg.norm(values)) if name == "cosine_f32" else product


@pytest.mark.emulated
@pytest.mark.parametrize("size", [1, 7, 16, 33, 127, 768])
@pytest.mark.parametrize("name", SIGNATURES)
def test_ctypes_calls_every_kernel(target: str, name: str, size: int) -> None:
    kernel = ctypes.CFUNCTYPE(SIGNATURES[name][0], POINTER, POINTER, ctypes.c_uint64)(asx.kernel_address(name))
    a, b, expected = operands(name, size)
    assert kernel(address_of(a), address_of(b), size) == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.mark.emulated
def test_kernels_accept_no_dims_at_all(target: str) -> None:
    empty = np.empty(0, np.float32)
    for name in ("dot_f32", "l2_f32", "cosine_f32"):
        kernel = ctypes.CFUNCTYPE(ctypes.c_float, POINTER, POINTER, ctypes.c_uint64)(asx.kernel_address(name))
        assert kernel(address_of(empty), address_of(empty), 0) == 0


def test_every_target_has_its_own_kernels() -> None:
    addresses = {}
    for name in NATIVE:
        with asx.use_backend(name):
            addresses[name] = asx.kernel_address("dot_f32")
    assert len(set(addresses.values())) == len(NATIVE)


def test_an_unknown_kernel_is_a_clear_error(target: str) -> None:
    with pytest.raises(ValueError, match="no_such_kernel"):
        asx.kernel_address("no_such_kernel")
