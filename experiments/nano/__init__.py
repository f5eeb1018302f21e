"""The laboratory of the built-in model: what it was trained on, and with, beside the package; see docs/nano.md."""
