"""Benchmarks: modules that print JSON lines, ``uv run python -m tests.benchmarks.<name>``; pytest does not run them."""
