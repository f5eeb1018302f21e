"""The planner behind `vl2 plan`: simulate a training run on a cluster to get memory, step time, bubbles and days."""
