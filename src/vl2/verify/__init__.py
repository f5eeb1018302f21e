"""The checks of `vl2 verify`: is a checkpoint complete and correct, does this machine compute right, and the report."""
