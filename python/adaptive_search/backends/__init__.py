"""Which implementation of the operations runs: the only place that looks.

Native targets come with the extension module, chosen by CPU and operating system; Numba is there where it is installed. The
environment variable ``ADAPTIVE_SEARCH_BACKEND`` names the one to start with, `use_backend` switches for a while.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .protocol import Backend

PREFERENCE = ("avx512_bf16", "avx512", "avx2", "numba", "baseline")
VARIABLE = "ADAPTIVE_SEARCH_BACKEND"


def _native_targets() -> dict[str, Any]:
    """Targets of the extension module by name; none in a wheel that was built without native code."""
    name = "adaptive_search._native"
    spec = importlib.util.find_spec(name)
    if spec is None:
        return {}
    try:
        native = importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"the native module of adaptive_search is installed ({spec.origin}) but cannot be loaded: {error}. It was probably built "
            "for another Python, C++ runtime or processor; reinstall adaptive-search, or build it without native code by setting "
            "ADAPTIVE_SEARCH_PURE_PYTHON=1."
        ) from error
    return {target.name: target for target in native.targets()}


_targets = _native_targets()
_lock = threading.Lock()
_numba: Backend | None = None


def missing(name: str) -> str:
    """Why a backend cannot run here; empty if it can."""
    if name == "numba":
        return "" if importlib.util.find_spec("numba") else "numba is not installed (pip install 'adaptive-search[numba]')"
    if name in _targets:
        lacking: str = _targets[name].missing
        return lacking and f"this machine lacks {lacking}"
    if _targets:
        return "not built for this platform"
    return "this installation has no native code"


def backends() -> list[str]:
    """Names of the backends that can run here, best first.

    Examples
    --------
    >>> import adaptive_search as asx
    >>> asx.backend() in asx.backends()
    True
    """
    return [name for name in PREFERENCE if not missing(name)]


def _checked(name: object, source: str) -> str:
    if name not in PREFERENCE or missing(str(name)):
        raise ValueError(f"{source}: no backend {name!r} here. Available: {', '.join(backends()) or 'none'}.{_explained()}")
    return str(name)


def _explained() -> str:
    """A sentence about the backends that cannot run here."""
    others = [f"{name} ({reason})" for name in PREFERENCE if (reason := missing(name))]
    return f" Not available: {', '.join(others)}." if others else ""


def _initial() -> str:
    forced = os.environ.get(VARIABLE, "")
    if forced:
        return _checked(forced, VARIABLE)
    found = backends()
    if not found:
        raise ImportError(f"adaptive_search has no backend on this machine.{_explained()}")
    return found[0]


_current = _initial()


def get(name: str) -> Backend:
    """The backend of that name; Numba is imported when it is first asked for."""
    global _numba
    _checked(name, "backend")
    if name != "numba":
        target: Backend = _targets[name]
        return target
    with _lock:
        if _numba is None:
            from .numba import NumbaBackend

            _numba = NumbaBackend()
        return _numba


def current() -> Backend:
    """The backend in use. Ask once per call, and keep what it prepares with it."""
    target = _targets.get(_current)
    return get(_current) if target is None else target


def backend() -> str:
    """Name of the backend in use: the best one, unless ``ADAPTIVE_SEARCH_BACKEND`` or `use_backend` says otherwise."""
    return _current


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Use another backend within a ``with`` block, in all threads of the process.

    Results are the same on every backend, to the bit; only speed differs.

    Parameters
    ----------
    name : str
        One of `backends`.

    Raises
    ------
    ValueError
        The backend is unknown or cannot run here; the message lists what is available and why the rest is not.

    Examples
    --------
    >>> import adaptive_search as asx
    >>> with asx.use_backend(asx.backends()[-1]):
    ...     asx.backend() == asx.backends()[-1]
    True
    """
    global _current
    chosen = _checked(name, "use_backend")
    before, _current = _current, chosen
    try:
        yield
    finally:
        _current = before


def get_include() -> str:
    """Directory of ``adaptive_search.h``, for C, C++ and Cython code that calls the kernels.

    Raises
    ------
    FileNotFoundError
        This installation has no native code.
    """
    directory = Path(__file__).parent.parent / "include"
    if not (directory / "adaptive_search.h").is_file():
        raise FileNotFoundError("adaptive_search.h is not here: this installation has no native code")
    return str(directory)


def kernel_address(name: str) -> int:
    """Address of a C kernel of the backend in use, for ctypes, Numba and other indexes.

    ``adaptive_search.h`` (see `get_include`) has the signatures. The address stays valid as long as the process has this package loaded.

    Parameters
    ----------
    name : str
        A field of ``asx_kernels`` such as ``"dot_f32"``, or ``"kernels"`` for the whole table.

    Raises
    ------
    ValueError
        The name is unknown, or the backend in use is Numba, which has no C kernels.
    """
    target = _targets.get(_current)
    if target is None:
        natives = [other for other in backends() if other != "numba"]
        hint = f"use_backend({natives[0]!r}) has them" if natives else "this installation has no native code"
        raise ValueError(f"kernel_address: the backend in use, {_current!r}, has no C kernels; {hint}")
    address: int = target.kernel_address(name)
    return address
