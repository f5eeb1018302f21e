"""Evaluation: benchmarks by their own rules. One file per benchmark in `tasks`."""
