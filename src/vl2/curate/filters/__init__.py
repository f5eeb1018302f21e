"""Filters: each looks at a record and says whether it is kept, and why not; `filter_chain.py` chains them."""
