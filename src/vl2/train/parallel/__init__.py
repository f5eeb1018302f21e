"""Parallelism over ranks: expert parallelism, pipeline parallelism and tile balancing."""
