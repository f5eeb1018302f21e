"""Documents as blocks: `read` reads PDF, office and HTML files, images and URLs into typed blocks in reading order."""

from vl2.documents.block import BlockPlace, DocumentBlock, DocumentPage, ReadDocument
from vl2.documents.read import read
from vl2.documents.write import to_html, to_json, to_markdown

__all__ = ["BlockPlace", "DocumentBlock", "DocumentPage", "ReadDocument", "read", "to_html", "to_json", "to_markdown"]
