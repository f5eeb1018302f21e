"""What was tried and trained beside the package: not in the wheel, run from a clone with `python -m`."""
