"""The operations in Numba, one module per family.

Below the families: ``jit`` (how functions are compiled), ``emit`` (LLVM vector code), ``memory`` (values at addresses),
``lanes`` (canonical scores), ``chunks`` (rows and visits), ``candidates`` (the top-k in progress).
"""
