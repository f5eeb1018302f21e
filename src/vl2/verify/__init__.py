"""Whether a checkpoint and this machine are right: what `vl2 verify` checks, and the page that it writes."""
