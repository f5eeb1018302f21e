"""Public data sets, and one's own, as records: one catalog entry for each set.

`convert(name, folder)` yields the records of a public set, and docs/data.md lists the sets; `own_data.py` reads what a
person has; `fetch.py` gets what package registries hold.
"""

from vl2.datasets.conversion import RowProblem
from vl2.datasets.dataset_catalog import CATALOGUE, DataSet, convert

__all__ = ["CATALOGUE", "DataSet", "RowProblem", "convert"]
