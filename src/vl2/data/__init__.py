"""Training data: the record format, its stores, the mixture of sources, packing and the loader."""
