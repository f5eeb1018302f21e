"""The benchmark of `vl2 bench`: a model's speed and memory beside the machine's limits and other programs."""
