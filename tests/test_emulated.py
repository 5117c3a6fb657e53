"""Old processors, emulated: the right backend is found there, and it answers with the same bits as this machine's best."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import shutil
import subprocess
import sys
from typing import Any

import pytest

import adaptive_search as asx

# What each emulated CPU lacks, by LLVM's names, and the backends that must be found there (those without Numba's package aside).
PROCESSORS = {
    "Nehalem": ("avx", ["numba", "baseline"]),
    "Haswell": ("avx512f", ["avx2", "numba", "baseline"]),
}

# Prints the backends and, per native one, the target that the kernel table itself names and the bits of a small search.
PROBE = """
import ctypes, json
import numpy as np
import adaptive_search as asx

rng = np.random.default_rng(5)
rows = rng.standard_normal((3000, 96)).astype(np.float32)
queries = rng.standard_normal((9, 96)).astype(np.float32)
codes = np.packbits(rows > 0, axis=1)
report = {"backends": asx.backends(), "used": asx.backend(), "targets": {}, "answers": {}}
for name in asx.backends():
    if name == "numba":
        continue
    with asx.use_backend(name):
        # struct asx_kernels: two 32-bit numbers, then the name
        report["targets"][name] = ctypes.cast(asx.kernel_address("kernels") + 8, ctypes.POINTER(ctypes.c_char_p))[0].decode()
        found = asx.top_k(queries, rows, 7, metric="cosine")
        binary = asx.hamming_top_k(codes[:9], codes, 7)
        report["answers"][name] = [found.ids.tolist(), found.scores.view(np.int32).tolist(), binary.ids.tolist()]
print(json.dumps(report))
"""


def probe(*prefix: str) -> dict[str, Any]:
    # OPENBLAS_CORETYPE forces instructions on NumPy's BLAS that the emulated CPU may lack.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ADAPTIVE_SEARCH_", "OPENBLAS_CORETYPE"))}
    done = subprocess.run([*prefix, sys.executable, "-c", PROBE], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.skipif("ADAPTIVE_SEARCH_EMULATED" in os.environ, reason="runs the emulator itself")
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64") or sys.platform != "linux", reason="emulates x86-64 Linux on itself")
@pytest.mark.skipif(shutil.which("qemu-x86_64") is None, reason="qemu-x86_64 is not installed (Debian: qemu-user)")
@pytest.mark.skipif(asx.backends() == ["numba"], reason="built without native code")
@pytest.mark.parametrize("processor", PROCESSORS)
def test_an_old_processor_finds_its_target_and_the_same_answers(processor: str) -> None:
    here = probe()
    there = probe("qemu-x86_64", "-cpu", processor)
    expected = [name for name in PROCESSORS[processor][1] if name in here["backends"] or name != "numba"]
    assert there["backends"] == expected
    assert there["used"] == expected[0]
    assert there["targets"] == {name: name for name in expected if name != "numba"}
    answer = here["answers"][next(iter(here["answers"]))]
    assert all(other == answer for other in there["answers"].values())


@pytest.mark.emulated
@pytest.mark.skipif("ADAPTIVE_SEARCH_EMULATED" not in os.environ, reason="only under an emulated CPU")
def test_this_run_is_emulated_and_uses_the_expected_target() -> None:
    # LLVM asks the CPU by cpuid, as the package does, but with code of its own.
    from llvmlite.binding import get_host_cpu_features

    lacking, expected = PROCESSORS[os.environ["ADAPTIVE_SEARCH_EMULATED"]]
    assert not get_host_cpu_features()[lacking]
    assert asx.backends() == expected
    assert asx.backend() == expected[0]
    for name in expected:
        if name != "numba":
            with asx.use_backend(name):
                table = asx.kernel_address("kernels")
            # struct asx_kernels: two 32-bit numbers, then the name
            target = ctypes.cast(table + 8, ctypes.POINTER(ctypes.c_char_p))[0]
            assert target is not None
            assert target.decode() == name
