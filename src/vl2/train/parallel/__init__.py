"""Parallelism over ranks: expert, tensor and pipeline parallelism, and tile balancing."""
