"""A primer: small pictures with several questions each, for a model that reads little and learns from nothing.

Nothing here is larger than two tiles of 168 px side by side, so that a picture costs one to three tiles; several
questions about it share that cost.
"""
