"""What a camera wrote into a picture: make, exposure, time, and whether there is a place, as lines for a prompt."""

from __future__ import annotations

import io
from typing import Any

from PIL import ExifTags, Image

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
