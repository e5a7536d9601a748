"""Benchmarks: modules that print one JSON line each, ``uv run python -m tests.benchmarks.<name>``; not run by pytest."""
