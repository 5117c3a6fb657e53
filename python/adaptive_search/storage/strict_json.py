"""JSON from a file that nobody vouches for."""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

from ..types import IndexFormatError

# Strings are matched first, so that brackets inside them do not count. Possessive, so that a long string costs no memory.
_STRING_OR_BRACKET = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[\[\]{}]', re.DOTALL)


def parse(raw: bytes, what: str, *, max_depth: int) -> Any:
    """Parse UTF-8 JSON, without what `json.loads` lets through: duplicate keys, NaN, infinities, any depth.

    The depth is counted before parsing, because the parser recurses on the C stack. Memory is bounded by the length of
    ``raw``, which the caller limits.

    Raises
    ------
    IndexFormatError
        Naming ``what``.
    """
    if _is_deeper(raw, max_depth):
        raise IndexFormatError(f"{what} is nested deeper than {max_depth} levels")
    try:
        return json.loads(raw.decode("utf-8"), object_pairs_hook=_unique, parse_float=_finite, parse_constant=_refuse_constant)
    except ValueError as error:  # also wrong UTF-8 and integers of absurd length
        raise IndexFormatError(f"{what} is not valid JSON: {error}") from None


def _is_deeper(raw: bytes, limit: int) -> bool:
    depth = 0
    for match in _STRING_OR_BRACKET.finditer(raw):
        if match[0] in b"[{":
            depth += 1
            if depth > limit:
                return True
        elif match[0] in b"]}":
            depth -= 1
    return False


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return result


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is beyond the range of a float")
    return value


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")
