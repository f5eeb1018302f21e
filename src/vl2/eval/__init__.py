"""Evaluate models on benchmarks with the benchmarks' own rules. Each file in `tasks` is one benchmark."""
