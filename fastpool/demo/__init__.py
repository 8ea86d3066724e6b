"""The demonstration: `python -m fastpool demo`, and the PostgreSQL that it runs on.

Nothing in the library imports this package; only `fastpool.__main__`, the tests and the benchmarks
do. Its optional dependencies are the extra `demo`.
"""
