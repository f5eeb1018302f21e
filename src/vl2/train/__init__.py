"""Training: recipes and stages, the training loop, one optimizer step, parallelism over ranks, checkpoints."""
