"""Benchmarks beside NumPy and the peers, mirrored on the tree of the package: `make bench`, or ``pytest bench``."""
