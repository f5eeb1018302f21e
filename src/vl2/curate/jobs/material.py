"""Prepare the material of a job's prompt besides the record: encoded images, their OCR text and camera metadata."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import ExifTags, Image

from vl2.curate.jobs.client import SentImage
from vl2.curate.jobs.ocr import Line, OcrCache, hints
from vl2.data.ray_map import MapBackend
from vl2.data.record import Record, StoredImage
from vl2.data.store.entry import check_text
from vl2.data.stored_image import content_hash, read_stored
from vl2.errors import UserError
from vl2.process.image import open_image

if TYPE_CHECKING:
    from vl2.curate.jobs.job_protocol import DataJob

_MAIN = ("Make", "Model", "DateTime")
_PHOTO = ("FocalLength", "FNumber", "ExposureTime", "ISOSpeedRatings", "LensModel")
_NUMBERS = {tag.name: tag.value for tag in ExifTags.Base}
_MAX_CHARACTERS = 80


def camera_data(data: bytes) -> tuple[str, ...]:
    """Return lines such as "FNumber: 2.8" from the EXIF data of an image file, if any."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            exif = image.getexif()
        photo, place = exif.get_ifd(ExifTags.IFD.Exif), exif.get_ifd(ExifTags.IFD.GPSInfo)
    except Exception:  # broken EXIF data may raise anything, and must not make the image unusable
        return ()
    found = [(name, exif.get(_NUMBERS[name])) for name in _MAIN]
    found += [(name, photo.get(_NUMBERS[name])) for name in _PHOTO]
    lines = [f"{name}: {_printable(value)}" for name, value in found if value is not None and _printable(value)]
    position = _position(place)
    return (*lines, f"GPS: {position}") if position else tuple(lines)


def _printable(value: Any) -> str:
    text = f"{float(value):g}" if not isinstance(value, str | bytes | tuple) else str(value)
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:_MAX_CHARACTERS]


def _position(place: dict[int, Any]) -> str:
    """Return latitude and longitude in degrees, to about a kilometer; "" unless both are present."""
    try:
        latitude = _degrees(place[ExifTags.GPS.GPSLatitude], place[ExifTags.GPS.GPSLatitudeRef] == "S")
        longitude = _degrees(place[ExifTags.GPS.GPSLongitude], place[ExifTags.GPS.GPSLongitudeRef] == "W")
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return ""
    return f"{latitude:.2f}, {longitude:.2f}"


def _degrees(parts: Any, is_negative: bool) -> float:
    degrees, minutes, seconds = (float(part) for part in parts)
    value = degrees + minutes / 60 + seconds / 3600
    return -value if is_negative else value


MAX_SIDE_PX = 2048  # larger images are scaled down, because endpoints refuse or shrink them anyway
_SENT_AS_STORED = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}
_JPEG_QUALITY = 92


@dataclass(frozen=True, kw_only=True)
class Material:
    """The material of one record, with one entry per image in each field; `ocr` is empty if the job does not use it."""

    images: tuple[SentImage, ...] = ()
    ocr: tuple[tuple[Line, ...], ...] = ()
    camera: tuple[tuple[str, ...], ...] = ()  # such as "FNumber: 2.8"

    def ocr_hints(self) -> str:
        """Return the OCR text of all images, separated by blank lines."""
        return "\n\n".join(filter(None, map(hints, self.ocr)))


def sent_image(data: bytes) -> SentImage:
    """Return an image file in the form to send: unchanged if endpoints accept it, otherwise as JPEG.

    Raise UserError if the file is damaged. It is always decoded, so that a damaged file does not cost a request.
    """
    image = open_image(data)
    media = _media_type(data)
    if media is None or max(image.size) > MAX_SIDE_PX:
        image.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX), Image.Resampling.LANCZOS)
        data_sent, media = _as_jpeg(image), "image/jpeg"
    else:
        data_sent = data
    return SentImage(digest=content_hash(data), url=f"data:{media};base64,{base64.b64encode(data_sent).decode()}")


def _media_type(data: bytes) -> str | None:
    """Return the media type under which the file can be sent unchanged; None if it must be re-encoded."""
    with Image.open(io.BytesIO(data)) as image:
        # Endpoints differ in whether they apply the EXIF orientation.
        is_rotated = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        return None if is_rotated else _SENT_AS_STORED.get(image.format or "")


def _as_jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=_JPEG_QUALITY)
    return file.getvalue()


_RAY_WINDOW = 1024  # records whose images are sent to the cluster at once


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A record with the bytes of its images and its material, or with the `problem` that prevents a request."""

    record: Record
    material: Material = field(default_factory=Material)
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class _Opened:
    prepared: Prepared
    files: tuple[bytes, ...] = ()  # the images that still need OCR


def prepare(
    records: Iterable[Record], job: DataJob, *, root: Path, ocr: OcrCache | None, on: MapBackend = "local"
) -> Iterator[Prepared]:
    """Yield every record in order with the material that the job needs."""
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
        record = replace(record, images=tuple(map(_with_bytes, record.images, files)))
        if not (job.sends_images or job.needs_ocr):
            return _Opened(prepared=Prepared(record=record))
        images = tuple(map(sent_image, files))
    except UserError as error:
        return _Opened(prepared=Prepared(record=record, problem=f"an image cannot be used: {error}"))
    camera = tuple(map(camera_data, files))
    material = Material(images=images if job.sends_images else (), camera=camera)
    return _Opened(prepared=Prepared(record=record, material=material), files=files)


def _with_bytes(image: StoredImage, data: bytes) -> StoredImage:
    return replace(image, data=data, path=None)


def _with_ocr(opened: _Opened, ocr: OcrCache) -> Prepared:
    prepared = opened.prepared
    lines = tuple(map(ocr.lines, opened.files))
    material = Material(images=prepared.material.images, ocr=lines, camera=prepared.material.camera)
    return Prepared(record=prepared.record, material=material, problem=prepared.problem)
