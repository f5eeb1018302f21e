"""Office files for tests."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

from PIL import Image

_TYPES = """<?xml version="1.0"?><Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">
<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>
<Default Extension="xml" ContentType="application/xml"/><Default Extension="png" ContentType="image/png"/>
<Override PartName="/word/document.xml"
 ContentType="application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"/></Types>"""
_RELATIONS = """<?xml version="1.0"?><Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">
<Relationship Id="r1" Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/{kind}"
 Target="{target}"/></Relationships>"""
_BODY = """<?xml version="1.0"?>
<w:document xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"
 xmlns:r="http://schemas.openxmlformats.org/officeDocument/2006/relationships"
 xmlns:wp="http://schemas.openxmlformats.org/drawingml/2006/wordprocessingDrawing"
 xmlns:a="http://schemas.openxmlformats.org/drawingml/2006/main"
 xmlns:pic="http://schemas.openxmlformats.org/drawingml/2006/picture"><w:body>
<w:p><w:pPr><w:pStyle w:val="Heading1"/></w:pPr><w:r><w:t>Rivers &amp; fords</w:t></w:r></w:p>
<w:p><w:r><w:t xml:space="preserve">The river </w:t></w:r><w:r><w:rPr><w:b/></w:rPr><w:t>rises</w:t></w:r>
<w:r><w:t xml:space="preserve"> 1 * 2.</w:t></w:r></w:p>
<w:tbl><w:tr><w:tc><w:tcPr><w:gridSpan w:val="2"/></w:tcPr><w:p><w:r><w:t>Boats</w:t></w:r></w:p></w:tc></w:tr>
<w:tr><w:tc><w:p><w:r><w:t>1901</w:t></w:r></w:p></w:tc>
<w:tc><w:p><w:r><w:t>12</w:t></w:r></w:p></w:tc></w:tr></w:tbl>
<w:p><w:r><w:drawing><wp:inline><wp:docPr id="1" name="p" descr="A ferry"/><a:graphic><a:graphicData><pic:pic>
<pic:blipFill><a:blip r:embed="r1"/></pic:blipFill></pic:pic></a:graphicData></a:graphic></wp:inline></w:drawing>
</w:r></w:p>
</w:body></w:document>"""


def png(size: tuple[int, int] = (30, 20), color: str = "red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, format="PNG")
    return file.getvalue()


def write_docx(path: Path) -> Path:
    """Write a heading, a paragraph with bold text, a table with a merged cell, and a picture."""
    main = _RELATIONS.format(kind="officeDocument", target="word/document.xml")
    kinds = {"word/document.xml": _BODY, "_rels/.rels": main,
             "word/_rels/document.xml.rels": _RELATIONS.format(kind="image", target="media/a.png"),
             "[Content_Types].xml": _TYPES}  # fmt: skip
    styles = (
        '<w:styles xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"><w:style w:type="paragraph" '
        'w:styleId="Heading1"><w:name w:val="heading 1"/></w:style></w:styles>'
    )
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in {**kinds, "word/styles.xml": styles}.items():
            archive.writestr(name, text)
        archive.writestr("word/media/a.png", png())
    return path


def write_pptx(path: Path) -> Path:
    """Write two slides: bullets, a table and a picture on the first; notes on the second."""
    from pptx import Presentation
    from pptx.util import Inches

    slides = Presentation()
    first = slides.slides.add_slide(slides.slide_layouts[1])
    first.shapes.title.text = "Rivers"
    body = first.placeholders[1].text_frame
    body.text = "first"
    inner = body.add_paragraph()
    inner.text, inner.level = "below it", 1
    table = first.shapes.add_table(2, 2, Inches(1), Inches(5), Inches(4), Inches(1)).table
    for number, text in enumerate(("Year", "Boats", "1901", "12")):
        table.cell(number // 2, number % 2).text = text
    first.shapes.add_picture(io.BytesIO(png()), Inches(6), Inches(6), Inches(3), Inches(2))
    second = slides.slides.add_slide(slides.slide_layouts[5])
    second.shapes.title.text = "Fords"
    second.notes_slide.notes_text_frame.text = "Say this slowly."
    slides.save(str(path))
    return path
