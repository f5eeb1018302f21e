"""What a job may put into its prompt besides the record: pictures as they are sent, their text and camera data."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

from PIL import ExifTags, Image

from vl2.curate.jobs.chat_request import SentImage
from vl2.curate.jobs.ocr import Line, hints
from vl2.data.stored_image import content_hash
from vl2.process.image import open_image

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
