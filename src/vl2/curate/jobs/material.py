"""What a job may put into its prompt besides the record: pictures as they are sent, their text and camera data."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

from PIL import ExifTags, Image

from vl2.curate.jobs.chat_request import SentImage
from vl2.curate.jobs.ocr import Line, hints
from vl2.data.stored_image import content_hash
from vl2.process.image import open_image

_MAIN = ("Make", "Model", "DateTime")
_PHOTO = ("FocalLength", "FNumber", "ExposureTime", "ISOSpeedRatings", "LensModel")
_NUMBERS = {tag.name: tag.value for tag in ExifTags.Base}
_MAX_CHARACTERS = 80


def camera_data(data: bytes) -> tuple[str, ...]:
    """Return lines such as "FNumber: 2.8" from the EXIF data of an image file; none if there are none."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            exif = image.getexif()
        photo, place = exif.get_ifd(ExifTags.IFD.Exif), exif.get_ifd(ExifTags.IFD.GPSInfo)
    except Exception:  # EXIF is often broken in ways of its own, and never worth losing the picture
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
    """Return latitude and longitude in degrees to about a kilometre; nothing if they are not both there."""
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


MAX_SIDE_PX = 2048  # larger pictures are scaled down: endpoints refuse or shrink them anyway
_SENT_AS_STORED = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}
_JPEG_QUALITY = 92


@dataclass(frozen=True, kw_only=True)
class Material:
    """One entry for each image of the record in all three; `ocr` is empty where the job does not ask for it."""

    images: tuple[SentImage, ...] = ()
    ocr: tuple[tuple[Line, ...], ...] = ()
    camera: tuple[tuple[str, ...], ...] = ()  # such as "FNumber: 2.8"

    def ocr_hints(self) -> str:
        """Return the text of all images, one below the other."""
        return "\n\n".join(filter(None, map(hints, self.ocr)))


def sent_image(data: bytes) -> SentImage:
    """Return an image file as it is sent: as stored if endpoints take that, else as JPEG. UserError if damaged.

    It is always decoded: a damaged file must not cost a request.
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
    """Return the type under which the file may be sent as it is; None if it must be encoded anew."""
    with Image.open(io.BytesIO(data)) as image:
        # Whether an endpoint turns a picture as its EXIF data say is anybody's guess.
        is_turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        return None if is_turned else _SENT_AS_STORED.get(image.format or "")


def _as_jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=_JPEG_QUALITY)
    return file.getvalue()
