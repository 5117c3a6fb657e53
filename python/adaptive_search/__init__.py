"""Embedding search on CPUs through cascades of cheap and exact representations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .backends import backend, backends, get_include, kernel_address, use_backend
from .execution import get_threads, set_threads
from .functional import dot, hamming, hamming_top_k, rescore, top_k
from .overlaps import intersection, intersection_top_k, jaccard, jaccard_top_k
from .types import IndexFormatError, Neighbors

if TYPE_CHECKING:
    from .cascade import Cascade, SearchStats
    from .index import Index
    from .quantizers import BinaryQuantizer, Int8Quantizer, PackedCodes, ProductQuantizer, RaBitQuantizer, RowInt8Quantizer
    from .representations import PQ, Binary, Full, Int8, Lists, Prefix, RaBit
    from .transforms import PCA, Chain, LearnedRotation, RandomRotation, RelativeProjection, Whitening

__version__ = "0.1.0"

__all__ = [
    "PCA",
    "PQ",
    "Binary",
    "BinaryQuantizer",
    "Cascade",
    "Chain",
    "Full",
    "Index",
    "IndexFormatError",
    "Int8",
    "Int8Quantizer",
    "LearnedRotation",
    "Lists",
    "Neighbors",
    "PackedCodes",
    "Prefix",
    "ProductQuantizer",
    "RaBit",
    "RaBitQuantizer",
    "RandomRotation",
    "RelativeProjection",
    "RowInt8Quantizer",
    "SearchStats",
    "Whitening",
    "backend",
    "backends",
    "dot",
    "get_include",
    "get_threads",
    "hamming",
    "hamming_top_k",
    "intersection",
    "intersection_top_k",
    "jaccard",
    "jaccard_top_k",
    "kernel_address",
    "rescore",
    "set_threads",
    "top_k",
    "use_backend",
]

# Imported when first used: the functions above do not need them, nor the libraries for files.
_LATER = {
    "Cascade": "cascade",
    "SearchStats": "cascade",
    "Index": "index",
    "BinaryQuantizer": "quantizers",
    "Int8Quantizer": "quantizers",
    "PackedCodes": "quantizers",
    "ProductQuantizer": "quantizers",
    "RaBitQuantizer": "quantizers",
    "RowInt8Quantizer": "quantizers",
    "PQ": "representations",
    "Binary": "representations",
    "Full": "representations",
    "Int8": "representations",
    "Lists": "representations",
    "Prefix": "representations",
    "RaBit": "representations",
    "PCA": "transforms",
    "Chain": "transforms",
    "LearnedRotation": "transforms",
    "RandomRotation": "transforms",
    "RelativeProjection": "transforms",
    "Whitening": "transforms",
}

# Modules above this one, which nothing here needs: imported when somebody asks for them.
_DOORS = ("evaluate", "plots")


def __getattr__(name: str) -> Any:
    if name not in _LATER and name not in _DOORS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    if name in _DOORS:
        return import_module(f".{name}", __name__)
    value = getattr(import_module(f".{_LATER[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_DOORS})
