"""The model in the two harnesses that the field uses. Each file imports its harness; nothing else of vl2 does."""
