"""Images that img2dataset downloaded from a list of URLs, found by URL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vl2.data.disk_index import DiskIndex
from vl2.data.json_stream import Row
from vl2.data.raw_files import image_file, parquet_rows
from vl2.data.record import StoredImage
from vl2.errors import UserError


class FetchedImages:
    """The images under a dataset's folder, in the layout that img2dataset writes with output format `files`.

        images/00000/000000000.jpg and images/00000.parquet (url, key, status)

    The URLs are kept on disk, because there may be hundreds of millions. Raise UserError if a list cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._by_url = DiskIndex(self._rows(), "url")

    def _rows(self) -> Iterator[Row]:
        for path in sorted((self._folder / "images").glob("*.parquet")):
            for where, row in parquet_rows([path], ("url", "key", "status"), batch_rows=1024):
                if isinstance(row, UserError):
                    yield where, row
                elif row["status"] == "success":
                    yield where, {"url": row["url"], "path": f"images/{path.stem}/{row['key']}.jpg"}

    def get(self, url: str) -> StoredImage | None:
        """Return the image of a URL, or None if it was not downloaded or cannot be read."""
        found = self._by_url.rows(url)
        try:
            return image_file(self._folder, found[-1]["path"]) if found else None
        except UserError:
            return None
