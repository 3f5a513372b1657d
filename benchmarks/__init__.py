"""Ratios against the ordinary way to write the same thing: `python -m benchmarks`."""
