"""Read and write files of records: JSONL with image paths, WebDataset tar shards and Parquet, local or remote.

Specification: docs/record.md.
"""

from vl2.data.store.access import Records, open_random, read_records, write_records
from vl2.data.store.entry import Found, Located, Place, Problem

__all__ = ["Found", "Located", "Place", "Problem", "Records", "open_random", "read_records", "write_records"]
