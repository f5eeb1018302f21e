"""Records to what their job needs: images read and encoded, text read off them, here or on a cluster."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from vl2.curate.jobs.material import Material, camera_data, sent_image
from vl2.curate.jobs.ocr import OcrCache
from vl2.curate.jobs.task import DataJob
from vl2.data.ray_map import Where
from vl2.data.record import Record, StoredImage
from vl2.data.store.parse import check_text
from vl2.data.stored_image import read_stored
from vl2.errors import UserError

_RAY_WINDOW = 1024  # records whose images go to the cluster at once


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A record, the bytes of its images in it, with its material; with a `problem` it cannot be asked about."""

    record: Record
    material: Material = field(default_factory=Material)
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class _Opened:
    prepared: Prepared
    files: tuple[bytes, ...] = ()  # the images that the text is still to be read of


def prepare(
    records: Iterable[Record], job: DataJob, *, root: Path, ocr: OcrCache | None, on: Where = "local"
) -> Iterator[Prepared]:
    """Yield every record in order with the material that the job asks for."""
    remaining = iter(records)
    window = _RAY_WINDOW if on == "ray" else 1
    while batch := list(islice(remaining, window)):
        opened = [_open(record, job, root) for record in batch]
        if ocr is not None and job.needs_ocr:
            ocr.read_all((data for each in opened for data in each.files), on)
            yield from (_with_ocr(each, ocr) for each in opened)
        else:
            yield from (each.prepared for each in opened)


def _open(record: Record, job: DataJob, root: Path) -> _Opened:
    try:
        check_text(record)
    except UserError as error:
        return _Opened(prepared=Prepared(record=record, problem=f"a text cannot be used: {error}"))
    try:
        files = tuple(read_stored(image, root) for image in record.images)
        record = replace(record, images=tuple(map(_inlined, record.images, files)))
        if not (job.sends_images or job.needs_ocr):
            return _Opened(prepared=Prepared(record=record))
        images = tuple(map(sent_image, files))
    except UserError as error:
        return _Opened(prepared=Prepared(record=record, problem=f"an image cannot be used: {error}"))
    camera = tuple(map(camera_data, files))
    material = Material(images=images if job.sends_images else (), camera=camera)
    return _Opened(prepared=Prepared(record=record, material=material), files=files)


def _inlined(image: StoredImage, data: bytes) -> StoredImage:
    return replace(image, data=data, path=None)


def _with_ocr(opened: _Opened, ocr: OcrCache) -> Prepared:
    prepared = opened.prepared
    lines = tuple(map(ocr.lines, opened.files))
    material = Material(images=prepared.material.images, ocr=lines, camera=prepared.material.camera)
    return Prepared(record=prepared.record, material=material, problem=prepared.problem)
