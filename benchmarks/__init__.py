"""What is measured rather than tested; each module is a program, `python -m benchmarks.NAME`."""
