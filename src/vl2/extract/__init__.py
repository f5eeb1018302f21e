"""Structured data from documents: `extract` fills a schema from pages, with the place that each value came from."""

from vl2.extract.documents import file_documents
from vl2.extract.extract import Document, Extraction, Page, Place, extract
from vl2.extract.target import Target, read_target

__all__ = ["Document", "Extraction", "Page", "Place", "Target", "extract", "file_documents", "read_target"]
