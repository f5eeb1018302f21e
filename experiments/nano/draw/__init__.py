"""What the built-in model learns from, drawn: sources of records for `vl2 data build`, from pinned texts and words."""
