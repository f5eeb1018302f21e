"""The publisher's pictures, from its repository or from a folder, each checked by the id that git gives its content."""

from __future__ import annotations

import hashlib
from pathlib import Path

from vl2.errors import UserError
from vl2.process.fetch import fetch

# Of the main branch: what is fetched is pinned by its content.
PICTURES_URL = "https://raw.githubusercontent.com/deepseek-ai/DeepSeek-VL2/main/images"
BLOB_IDS = {
    "visual_grounding_1.jpeg": "762dbbb6fa26a34eb137a076d67035f023d08539",
    "multi_image_1.jpeg": "e8e3f5acaed0cf956f6bcbcc42e796af6ce6b4b4",
    "multi_image_2.jpeg": "5777d198b83de15eb21243f8aac49074922053fb",
    "multi_image_3.jpeg": "24eb26b09c60305232eda1f0cab2d4106d0e552e",
}
MAX_BYTES = 50_000_000
TIMEOUT_S = 60.0


def blob_id(data: bytes) -> str:
    """Return the id that git gives to a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Pictures:
    """Gets each picture once. What could not be had is remembered too."""

    def __init__(self, folder: Path | None = None, *, may_download: bool = True) -> None:
        self._folder, self._may_download = folder, may_download
        self._known: dict[str, bytes | UserError] = {}

    def get(self, name: str) -> bytes:
        """Return a picture's bytes. UserError says why it cannot be had, or that it is another picture."""
        if name not in self._known:
            try:
                self._known[name] = self._checked(name)
            except UserError as error:
                self._known[name] = error
        found = self._known[name]
        if isinstance(found, UserError):
            raise found
        return found

    def _checked(self, name: str) -> bytes:
        data = self._read(name)
        if (found := blob_id(data)) != BLOB_IDS[name]:
            raise UserError(f"{name} is not the published picture: its blob id is {found}, not {BLOB_IDS[name]}")
        return data

    def _read(self, name: str) -> bytes:
        if self._folder is not None:
            try:
                return (self._folder / name).read_bytes()
            except OSError as error:
                raise UserError(f"{name} is not in the pictures folder: {error.strerror}") from None
        if not self._may_download:
            raise UserError(f"{name} was not downloaded, as --no-download says")
        # The address is ours, not a stranger's: a mirror inside the own network may stand for it.
        return fetch(f"{PICTURES_URL}/{name}", max_bytes=MAX_BYTES, timeout_s=TIMEOUT_S, allow_private=True)
