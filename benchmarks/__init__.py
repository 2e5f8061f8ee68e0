"""Benchmarks and comparisons with other libraries; each module is a program, `python -m benchmarks.NAME`."""
