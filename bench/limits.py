"""What this machine can do at most, measured beside every contest: a floor under the time that its work takes.

`limits.cpp` is compiled for it on first use, into ``build/``. Without a compiler there are no limits, and reports leave fractions out.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from operator import itemgetter
from pathlib import Path
from typing import TypeVar

import numpy as np

from adaptive_search.types import I64, U8, Array

from .settings import SETTINGS

T = TypeVar("T")

SOURCE = Path(__file__).with_name("limits.cpp")
BUILT = SOURCE.parents[1] / "build" / "bench" / "limits.so"

READ = {"memory": (256 << 20, 1), "cache": (1000 * 384 * 4, 50)}
"""How many bytes are read, and how often: far more than any cache holds; as many as 1,000 rows of 384 float32 have."""

SHORT, LONG = 200_000, 80_000_000
"""Repetitions of twelve instructions: half a millisecond, and 0.15 s, as what they are compared with meets as many interruptions."""

LONGER = 10
"""How many times as long several threads read."""

QUIET = 0.02
"""Share of the time of threads that others may have had their cores."""

CALL = 3e-6
"""Seconds that a call from Python may take: conversions, checks and the result."""

Instruction = tuple[str, int]


def _by_width(wide: Instruction | None, narrow: Instruction | None) -> dict[str, Instruction]:
    found = {"avx512_bf16": wide, "avx512": wide, "avx2": narrow, "numba": narrow}
    return {backend: instruction for backend, instruction in found.items() if instruction}


FMA = _by_width(("fma zmm", 1), ("fma ymm", 1))

INSTRUCTIONS: Mapping[str, Mapping[str, Instruction]] = {
    "float32": FMA,
    "bfloat16": {**FMA, "avx512_bf16": ("vdpbf16ps", 1)},
    "int8": _by_width(("vpdpbusd", 1), ("vpmaddubsw", 1)),
    "bits": _by_width(("vpopcntq", 1), ("vpshufb ymm", 2)),
    "nibbles": _by_width(("vpshufb zmm", 1), ("vpshufb ymm", 1)),
    "bytes": _by_width(("vpermi2b", 2), None),
}
"""The instruction that does the work of a kind, by backend, and how often it is needed for a unit of it: a multiplication or an addition;
the bits of a byte, counted by a lookup for each half where there is nothing better; a lookup among 16, or among the 256 entries of four
registers, of which a permutation takes two. What a backend may use, and nothing else, is its limit."""


@dataclass(frozen=True)
class Floor:
    """The least time that a query can take: the longer of computing and reading, and what a call costs besides.

    Parameters
    ----------
    operations, instruction
        How much of its work that instruction has to do for a query.
    bytes, reading
        How much is read for a query, at which rate: ``"memory"``, ``"cache"``, or a rate that the contest measures itself.
    threads
        So many threads compute and read side by side; else the peak of one.
    call
        Seconds besides.
    """

    operations: float = 0
    instruction: str = ""
    bytes: float = 0
    reading: str = "memory"
    threads: int | None = None
    call: float = 0

    def limits(self) -> list[tuple[str, float]]:
        """Names of the rates that limit, and the work to be done at each."""
        threads = f" x {self.threads}" if self.threads else ""
        reading = f"{self.reading}{threads}" if self.reading in READ else self.reading
        named = [(f"{self.instruction}{threads}", self.operations), (reading, self.bytes)]
        return [(name, work) for name, work in named if work]

    def seconds(self, rates: Mapping[str, float]) -> tuple[float, str]:
        """The least time of a query with these rates, and what sets it."""
        seconds, name = max((work / rates[name], name) for name, work in self.limits())
        return seconds + self.call, name


def floor(kind: str, backend: str, operations: float, bytes: float = 0, threads: int | None = None) -> Floor | None:  # noqa: A002
    """The floor of a backend for so much work of a kind; None where it has no instruction to measure."""
    instruction, needed = INSTRUCTIONS[kind].get(backend, ("", 0))
    return Floor(needed * operations, instruction, bytes, threads=threads) if instruction else None


@cache
def _library() -> ctypes.CDLL | None:
    """The compiled measurements; None without a compiler."""
    compiler = shutil.which(os.environ.get("CXX") or "c++") or shutil.which("g++")
    if compiler is None:
        return None
    if not BUILT.is_file() or BUILT.stat().st_mtime < SOURCE.stat().st_mtime:
        BUILT.parent.mkdir(parents=True, exist_ok=True)
        unfinished = BUILT.with_suffix(f".{os.getpid()}.so")
        subprocess.run([compiler, "-std=c++17", "-O2", "-shared", "-fPIC", SOURCE, "-o", unfinished], check=True)
        unfinished.replace(BUILT)
    library = ctypes.CDLL(str(BUILT))
    for function, arguments in (
        (library.instruction_rate, [ctypes.c_char_p, ctypes.c_long]),
        (library.read_rate, [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_long]),
        (library.random_rate, [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t]),
    ):
        function.restype, function.argtypes = ctypes.c_double, arguments
    return library


@cache
def _buffer(size: int) -> U8:
    return np.ones(size, np.uint8)


def random_rows(rows: Array, numbers: I64) -> float:
    """Bytes per second of reading these rows, several at a time; 0 if that cannot be measured. Once, for then they are in the cache."""
    library = _library()
    if library is None:
        return 0.0
    flat = np.ascontiguousarray(numbers, np.int64).ravel()
    return library.random_rate(rows.ctypes.data, rows.strides[0], flat.ctypes.data, flat.size)


def waited() -> float:
    """Seconds that threads of this process could have run, and had no core; 0 where the system does not say."""
    total = 0
    for file in Path("/proc/self/task").glob("*/schedstat"):
        with suppress(OSError):  # A thread that has ended.
            total += int(file.read_text().split()[1])
    return total / 1e9


def undisturbed(work: Callable[[], T], tries: int) -> T:
    """What ``work`` gives when nobody else wants the cores: of so many tries the first one without waiting, or else that with the least."""
    results: list[tuple[float, T]] = []
    while len(results) < tries:
        before, start = waited(), time.perf_counter()
        result = work()
        seconds = time.perf_counter() - start
        results.append(((waited() - before) / seconds, result))
        if results[-1][0] < QUIET:
            break
    return min(results, key=itemgetter(0))[1]


def measured(name: str) -> float:
    """Work or bytes per second at this moment, 0 if that cannot be measured.

    The best of some tries; ``name x 2`` is what two threads do together over a longer time, a part of the memory each.
    """
    name, _, threads = name.partition(" x ")
    library = _library()
    if library is None:
        return 0.0
    if name in READ:
        size, times = READ[name]
        buffer = _buffer(size)
    if not threads:
        tries = (
            library.read_rate(buffer.ctypes.data, size, times) if name in READ else library.instruction_rate(name.encode(), SHORT)
            for _ in range(5)
        )
        return max(tries)
    count = int(threads)

    def loop(thread: int) -> float:
        if name in READ:
            return float(library.read_rate(buffer.ctypes.data + thread * (size // count), size // count, times))
        return float(library.instruction_rate(name.encode(), LONG))

    with ThreadPoolExecutor(count) as pool:
        return undisturbed(lambda: sum(pool.map(loop, range(count))), SETTINGS.tries)
