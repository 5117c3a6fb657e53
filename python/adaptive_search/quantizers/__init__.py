"""Learned codes for rows: fit, encode, decode, and top-k estimated from codes."""

from .base import Quantizer
from .binary import BinaryQuantizer
from .int8 import Int8Quantizer, IntegerQueries
from .packed import PackedCodes
from .product import ProductQuantizer
from .rabit import RaBitQuantizer
from .row_int8 import RowInt8Quantizer

__all__ = [
    "BinaryQuantizer",
    "Int8Quantizer",
    "IntegerQueries",
    "PackedCodes",
    "ProductQuantizer",
    "Quantizer",
    "RaBitQuantizer",
    "RowInt8Quantizer",
]
