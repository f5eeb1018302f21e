"""Planning a training run on a cluster: memory, step time, bubbles and days of a layout, by simulation."""
