"""Public data sets as records: one file for each layout, one catalogue entry for each set.

`convert(name, folder)` yields records; docs/data.md lists the sets.
"""

from vl2.data.convert.catalogue import CATALOGUE, DataSet
from vl2.data.convert.layout import RowProblem
from vl2.data.convert.run import convert

__all__ = ["CATALOGUE", "DataSet", "RowProblem", "convert"]
