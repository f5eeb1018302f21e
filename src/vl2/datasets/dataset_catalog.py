"""The catalog of public datasets with their licenses and homepages, and `convert`, which reads one as records.

The license is that of the annotations; images often have terms of their own. A license of `check` means that it
varies within the dataset or could not be verified: see the homepage before use. docs/data.md says where the paper
used each dataset.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vl2.data.raw_files import read_json
from vl2.data.record import Record
from vl2.datasets.box_sets import read_boxed_photos, read_refcoco
from vl2.datasets.coco_sets import read_boxes, read_captions, read_objects365, read_v3det
from vl2.datasets.conversation_sets import read_cauldron, read_llava, read_llava_onevision
from vl2.datasets.conversion import Conversion, Converted, RowProblem, Table
from vl2.datasets.drawn_sets import read_easy_vqa, read_nlvr
from vl2.datasets.grounded_caption_sets import read_all_seeing, read_flickr30k_entities, read_grit, read_groma
from vl2.datasets.interleaved_sets import read_wanjuan, read_wikihow, read_wit
from vl2.datasets.multiple_choice_sets import read_ai2d, read_arxivqa, read_iconqa, read_smart101
from vl2.datasets.pdf_table_sets import read_fintabnet
from vl2.datasets.reading_sets import read_hdsrc, read_hme100k, read_latex_ocr, read_rendered_text
from vl2.datasets.receipt_sets import read_sroie
from vl2.datasets.screen_sets import read_mind2web, read_waveui
from vl2.datasets.short_answer_sets import (
    read_chartqa,
    read_docvqa,
    read_gqa,
    read_infovqa,
    read_kvqa,
    read_textvqa,
    read_vqav2,
)  # fmt: skip
from vl2.datasets.table_sets import read_tabfact, read_wikitables
from vl2.datasets.text_sets import read_freedict, read_instruction, read_text_table
from vl2.datasets.web_sets import read_captioned, read_obelics, read_pubtabnet, read_websight
from vl2.errors import UserError, name_hint


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """One public dataset.

    `negatives` is the default rate of queries for absent labels; None if the annotations do not show what is absent.
    """

    read: Callable[[Conversion], Converted]
    category: str
    licence: str
    home: str
    used: str  # by the paper
    languages: tuple[str, ...] = ("en",)  # the first is the default; empty if each row states its language
    negatives: float | None = None
    draws: bool = False  # whether its tables can be drawn as images


_NAMED = ("en", "zh")  # Chinese needs the file names_zh.json in the folder
_HUB = "huggingface.co/datasets/"
_NOT_USED = "not named by the paper"


def _text(licence: str, home: str, languages: tuple[str, ...] = ("en",)) -> DataSet:
    return DataSet(
        read=read_instruction, category="text", licence=licence, home=home, used="SFT: text only", languages=languages
    )


def _refcoco(home: str, used: str) -> DataSet:
    return DataSet(
        read=read_refcoco, category="grounding", licence="check", home=home, used=used, languages=_NAMED, negatives=0.0
    )


def _captions(licence: str, home: str, used: str = "pretraining: captions") -> DataSet:
    return DataSet(read=read_captioned, category="caption", licence=licence, home=home, used=used)


def _llava(category: str, licence: str, home: str, used: str) -> DataSet:
    return DataSet(read=read_llava, category=category, licence=licence, home=home, used=used)


# fmt: off
CATALOG: dict[str, DataSet] = {
    # Alignment
    "sharegpt4v": _llava("caption", "CC-BY-NC-4.0", _HUB + "Lin-Chen/ShareGPT4V", "alignment"),
    # Interleaved
    "obelics": DataSet(read=read_obelics, category="interleaved", licence="CC-BY-4.0",
                       home=_HUB + "HuggingFaceM4/OBELICS", used="pretraining: interleaved, 30 % of it"),
    "wit": DataSet(read=read_wit, category="interleaved", licence="CC-BY-SA-3.0",
                   home="github.com/google-research-datasets/wit", used="pretraining: interleaved", languages=()),
    "wanjuan": DataSet(read=read_wanjuan, category="interleaved", licence="CC-BY-4.0",
                       home="opendatalab.org.cn/WanJuan1.0", used="pretraining: interleaved", languages=("zh",)),
    "wikihow": DataSet(read=read_wikihow, category="interleaved", licence="check",
                       home="github.com/YueYANG1996/wikiHow-VGSI", used="pretraining: interleaved"),
    # Captions
    "coco_captions": DataSet(read=read_captions, category="caption", licence="CC-BY-4.0", home="cocodataset.org",
                             used=_NOT_USED),
    "pixelprose": _captions("CC-BY-4.0", _HUB + "tomg-group-umd/pixelprose"),
    "megalith": _captions("check", _HUB + "madebyollin/megalith-10m"),
    "dalle3_1m": _captions("check", _HUB + "ProGamerGov/synthetic-dataset-1m-dalle3-high-quality-captions"),
    "laion_aesthetics": _captions("check", "laion.ai"),
    "captioned": _captions("check", "any set that img2dataset fetched"),
    "densefusion": _captions("check", _HUB + "BAAI/DenseFusion-1M"),
    # Grounding
    "grit": DataSet(read=read_grit, category="grounding", licence="MS-PL", home=_HUB + "zzliang/GRIT",
                    used="pretraining: grounding and grounded conversation"),
    "objects365": DataSet(read=read_objects365, category="grounding", licence="check", home="objects365.org",
                          used="pretraining: grounding", languages=_NAMED, negatives=0.25),
    "coco": DataSet(read=read_boxes, category="grounding", licence="CC-BY-4.0", home="cocodataset.org",
                    used=_NOT_USED, languages=_NAMED, negatives=0.25),
    "bccd": DataSet(read=read_boxed_photos, category="grounding", licence="MIT",
                    home="github.com/Shenggan/BCCD_Dataset", used=_NOT_USED, negatives=0.0),
    "cards": DataSet(read=read_boxed_photos, category="grounding", licence="Apache-2.0", home="github.com/"
                     "EdjeElectronics/TensorFlow-Object-Detection-API-Tutorial-Train-Multiple-Objects-Windows-10",
                     used=_NOT_USED, negatives=0.25),
    "v3det": DataSet(read=read_v3det, category="grounding", licence="check", home="v3det.openxlab.org.cn",
                     used="SFT: grounding", languages=_NAMED),
    "refcoco": _refcoco(_HUB + "lmms-lab/RefCOCO", "SFT: grounding"),
    "refcoco+": _refcoco(_HUB + "lmms-lab/RefCOCOplus", "SFT: grounding"),
    "refcocog": _refcoco(_HUB + "lmms-lab/RefCOCOg", "SFT: grounding"),
    "waveui": DataSet(read=read_waveui, category="gui", licence="check", home=_HUB + "agentsea/wave-ui-25k",
                      used="SFT: grounding"),
    "mind2web": DataSet(read=read_mind2web, category="gui", licence="OpenRAIL",
                        home=_HUB + "osunlp/Multimodal-Mind2Web", used="SFT: grounding"),
    "groma": DataSet(read=read_groma, category="grounded_conversation", licence="check",
                     home=_HUB + "FoundationVision/groma_instruct", used="SFT: grounded conversation"),
    "as_1b": DataSet(read=read_all_seeing, category="grounded_conversation", licence="Apache-2.0",
                     home=_HUB + "OpenGVLab/AS-V2", used="pretraining: visual prompts"),
    "as_v2": DataSet(read=read_all_seeing, category="grounded_conversation", licence="Apache-2.0",
                     home=_HUB + "OpenGVLab/AS-V2", used="pretraining: visual prompts"),
    "flickr30k_entities": DataSet(read=read_flickr30k_entities, category="grounded_conversation", licence="check",
                                  home="bryanplummer.com/Flickr30kEntities", used="SFT: grounded conversation"),
    # Questions about images
    "vqav2": DataSet(read=read_vqav2, category="vqa", licence="CC-BY-4.0", home="visualqa.org", used="SFT: general"),
    "gqa": DataSet(read=read_gqa, category="vqa", licence="CC-BY-4.0", home="cs.stanford.edu/people/dorarad/gqa",
                   used="SFT: general, OCR"),
    "kvqa": DataSet(read=read_kvqa, category="vqa", licence="check", home="malllabiisc.github.io/resources/kvqa",
                    used="SFT: general"),
    "easy_vqa": DataSet(read=read_easy_vqa, category="vqa", licence="MIT", home="pypi.org/project/easy-vqa",
                        used=_NOT_USED),
    "llava": _llava("vqa", "check", _HUB + "liuhaotian/LLaVA-Instruct-150K", _NOT_USED),
    "allava": _llava("vqa", "check", _HUB + "FreedomIntelligence/ALLaVA-4V", "SFT: general"),
    "llava_next_interleave": _llava("vqa", "check", _HUB + "lmms-lab/M4-Instruct-Data", "SFT: general"),
    "cauldron": DataSet(read=read_cauldron, category="vqa", licence="check", home=_HUB + "HuggingFaceM4/the_cauldron",
                        used="SFT: general, OCR, tables and charts, reasoning"),
    "nlvr": DataSet(read=read_nlvr, category="reasoning", licence="CC-BY-4.0", home="lil.nlp.cornell.edu/nlvr",
                    used=_NOT_USED, negatives=0.0),
    "ai2d": DataSet(read=read_ai2d, category="academic", licence="check", home="prior.allenai.org/projects/diagrams",
                    used="evaluation"),
    "iconqa": DataSet(read=read_iconqa, category="reasoning", licence="CC-BY-SA-4.0", home="iconqa.github.io",
                      used="SFT: reasoning"),
    "smart101": DataSet(read=read_smart101, category="reasoning", licence="check", home="smartdataset.github.io",
                        used="SFT: reasoning"),
    "mathv360k": _llava("reasoning", "Apache-2.0", _HUB + "Zhiqiang007/MathV360K", "SFT: reasoning"),
    "mavis": DataSet(read=read_llava_onevision, category="reasoning", licence="check",
                     home=_HUB + "lmms-lab/LLaVA-OneVision-Data", used="SFT: reasoning"),
    # Text in images, documents, tables, charts, code
    "latex_ocr": DataSet(read=read_latex_ocr, category="ocr", licence="MIT", home="github.com/lukas-blecher/LaTeX-OCR",
                         used="pretraining: OCR"),
    "rendered_text": DataSet(read=read_rendered_text, category="ocr", licence="check",
                             home=_HUB + "wendlerc/RenderedText", used="pretraining: OCR; SFT: OCR"),
    "hme100k": DataSet(read=read_hme100k, category="ocr", licence="check", home="github.com/tal-tech/SAN",
                       used="SFT: OCR"),
    "hdsrc": DataSet(read=read_hdsrc, category="ocr", licence="check", home="www.orand.cl/icfhr2014-hdsr",
                     used="SFT: OCR"),
    "docvqa": DataSet(read=read_docvqa, category="document", licence="check", home="docvqa.org", used="SFT: OCR"),
    "infovqa": DataSet(read=read_infovqa, category="document", licence="check", home="docvqa.org", used="SFT: OCR"),
    "docmatix": DataSet(read=read_cauldron, category="document", licence="MIT", home=_HUB + "HuggingFaceM4/Docmatix",
                        used="pretraining: documents"),
    "textvqa": DataSet(read=read_textvqa, category="ocr", licence="CC-BY-4.0", home="textvqa.org", used="SFT: OCR"),
    "arxivqa": DataSet(read=read_arxivqa, category="table_chart", licence="CC-BY-SA-4.0",
                       home=_HUB + "MMInstruction/ArxivQA", used="SFT: tables and charts"),
    "tabfact": DataSet(read=read_tabfact, category="table_chart", licence="check",
                       home="github.com/wenhuchen/Table-Fact-Checking", used="SFT: tables and charts", draws=True),
    "sroie": DataSet(read=read_sroie, category="ocr", licence="check", home="rrc.cvc.uab.es/?ch=13", used=_NOT_USED,
                     negatives=0.25),
    "chartqa": DataSet(read=read_chartqa, category="table_chart", licence="GPL-3.0-only",
                       home="github.com/vis-nlp/ChartQA", used="evaluation"),
    "pubtabnet": DataSet(read=read_pubtabnet, category="table_chart", licence="check",
                         home="github.com/ibm-aur-nlp/PubTabNet", used="pretraining: tables"),
    "fintabnet": DataSet(read=read_fintabnet, category="table_chart", licence="check",
                         home="developer.ibm.com/exchanges/data/all/fintabnet", used="pretraining: tables"),
    "wikitables": DataSet(read=read_wikitables, category="table_chart", licence="CC-BY-SA-4.0",
                          home="github.com/ppasupat/WikiTableQuestions", used=_NOT_USED, draws=True),
    "websight": DataSet(read=read_websight, category="web_to_code", licence="CC-BY-4.0",
                        home=_HUB + "HuggingFaceM4/WebSight", used="pretraining: web to code"),
    # Text only
    "text_table": DataSet(read=read_text_table, category="text", licence="check", home="any table of texts",
                          used=_NOT_USED, languages=()),
    "freedict": DataSet(read=read_freedict, category="text", licence="CC-BY-SA-3.0",
                        home="packages.debian.org: dict-freedict-eng-zho", used=_NOT_USED, languages=()),
    "gsm8k": _text("MIT", "github.com/openai/grade-school-math"),
    "metamath": _text("MIT", _HUB + "meta-math/MetaMathQA"),
    "mathqa": _text("check", "math-qa.github.io"),
    "orca_math": _text("MIT", _HUB + "microsoft/orca-math-word-problems-200k"),
    "openmathinstruct2": _text("CC-BY-4.0", _HUB + "nvidia/OpenMathInstruct-2"),
    "dolly": _text("CC-BY-SA-3.0", _HUB + "databricks/databricks-dolly-15k"),
    "gpt4_llm": _text("check", "github.com/Instruction-Tuning-with-GPT-4/GPT-4-LLM"),
    "magicoder": _text("MIT", _HUB + "ise-uiuc/Magicoder-OSS-Instruct-75K"),
    "magpie": _text("check", _HUB + "Magpie-Align"),
    "coig_cqia": _text("check", _HUB + "m-a-p/COIG-CQIA", ("zh",)),
}
# fmt: on


def convert(
    name: str,
    folder: str | Path,
    *,
    split: str = "train",
    language: str | None = None,
    seed: int = 0,
    negatives: float | None = None,
    draw: Callable[[Table], bytes] | None = None,
) -> Iterator[Record | RowProblem]:
    """Yield the records of a public dataset in the order of its files, and a `RowProblem` for each row that fails.

    `folder` is the unpacked release; the docstring of each converter shows its layout. Image files become paths
    relative to `folder`; `write_records(..., image_folder=folder)` stores their bytes. `negatives` is the number of
    queries for absent labels per query for a present one. `draw` draws the tables of datasets whose tables are text,
    for example `vl2.synth.table_image.draw_cells`. `language="zh"` asks in Chinese for the labels that
    `names_zh.json` in the folder ({"dog": "狗"}) translates, and leaves out the others.

    Raise UserError before the first record if the name, the folder or a setting is not valid.
    """
    entry = _entry(name)
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    if draw is not None and not entry.draws:
        raise UserError(f"{name} has no tables to draw")
    language = language or (entry.languages[0] if entry.languages else "en")
    conversion = Conversion(
        folder=folder,
        split=split,
        source=name,
        category=entry.category,
        licence=entry.licence,
        language=language,
        seed=seed,
        negatives=_rate(name, entry, negatives),
        draw=draw,
        names=_names(name, entry, language, folder),
    )
    return entry.read(conversion)


def _entry(name: str) -> DataSet:
    if name not in CATALOG:
        raise UserError(f"no dataset is called {name!r}: {name_hint(name, CATALOG)}")
    return CATALOG[name]


def _rate(name: str, entry: DataSet, negatives: float | None) -> float:
    if negatives is None:
        return entry.negatives or 0.0
    if entry.negatives is None and negatives:
        raise UserError(f"{name} does not say what is absent from an image: set negatives to 0")
    if not 0 <= negatives <= 1:
        raise UserError(f"negatives must be in 0..1, got {negatives}")
    return negatives


def _names(name: str, entry: DataSet, language: str, folder: Path) -> dict[str, str]:
    """Return the translated names of labels, or nothing if the dataset itself is in the language."""
    if not entry.languages:
        return {}  # rows state their language; the given one is the fallback
    if language not in entry.languages:
        raise UserError(f"{name} is available in {', '.join(entry.languages)}, got {language!r}")
    if language == entry.languages[0]:
        return {}
    path = folder / f"names_{language}.json"
    names = read_json(path) if path.is_file() else None
    if not isinstance(names, dict) or not all(isinstance(v, str) and v.strip() for v in names.values()):
        raise UserError(f'{path} must hold the names of labels in {language}, as {{"dog": "狗"}}')
    return names
