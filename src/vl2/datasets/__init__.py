"""Convert public datasets and users' own data to records.

`convert(name, folder)` yields the records of a public dataset; docs/data.md lists them. `own_data.py` reads users' own
tables and conversations, and `fetchable.py` downloads what package registries offer.
"""

from vl2.datasets.conversion import RowProblem
from vl2.datasets.dataset_catalog import CATALOG, DataSet, convert

__all__ = ["CATALOG", "DataSet", "RowProblem", "convert"]
