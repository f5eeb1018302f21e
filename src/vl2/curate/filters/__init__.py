"""Filters, each of which keeps a record or drops it with a reason; `filter_chain.py` runs several in order."""
