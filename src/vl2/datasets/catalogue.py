"""Which converter reads which public set: one entry a set, with its licence, its home and what it is for.

A licence of `check` means that it differs within the set or could not be made sure of: see the home before use. It is
the licence of the annotations; images often have terms of their own. docs/data.md says where the paper used each set.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vl2.datasets import (
    ai2d,
    arxivqa,
    boxed_photos,
    captioned,
    cauldron,
    chartqa,
    coco,
    docvqa,
    easy_vqa,
    flickr30k_entities,
    freedict,
    gqa,
    grit,
    iconqa,
    infovqa,
    instruction,
    llava,
    nlvr,
    obelics,
    objects365,
    pubtabnet,
    refcoco,
    sroie,
    tabfact,
    text_table,
    textvqa,
    vqav2,
    waveui,
    websight,
    wikitables,
)
from vl2.datasets.conversion import Conversion, Converted


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """One public set. `negatives` is the usual rate of queries for what is absent, None where it cannot be told."""

    read: Callable[[Conversion], Converted]
    category: str
    licence: str
    home: str
    used: str  # by the paper
    languages: tuple[str, ...] = ("en",)  # the first is the usual one
    negatives: float | None = None
    draws: bool = False  # whether its tables can be drawn as images


_NAMED = ("en", "zh")  # in Chinese where the folder has names_zh.json
_HUB = "huggingface.co/datasets/"
_NOT_USED = "not named by the paper"


def _text(licence: str, home: str, languages: tuple[str, ...] = ("en",)) -> DataSet:
    return DataSet(
        read=instruction.read, category="text", licence=licence, home=home, used="SFT: text only", languages=languages
    )


def _refcoco(home: str, used: str) -> DataSet:
    return DataSet(
        read=refcoco.read, category="grounding", licence="check", home=home, used=used, languages=_NAMED, negatives=0.0
    )


def _captions(licence: str, home: str, used: str = "pretraining: captions") -> DataSet:
    return DataSet(read=captioned.read, category="caption", licence=licence, home=home, used=used)


def _llava(category: str, licence: str, home: str, used: str) -> DataSet:
    return DataSet(read=llava.read, category=category, licence=licence, home=home, used=used)


# fmt: off
CATALOGUE: dict[str, DataSet] = {
    # Alignment
    "sharegpt4v": _llava("caption", "CC-BY-NC-4.0", _HUB + "Lin-Chen/ShareGPT4V", "alignment"),
    # Interleaved
    "obelics": DataSet(read=obelics.read, category="interleaved", licence="CC-BY-4.0",
                       home=_HUB + "HuggingFaceM4/OBELICS", used="pretraining: interleaved, 30 % of it"),
    # Captions
    "coco_captions": DataSet(read=coco.read_captions, category="caption", licence="CC-BY-4.0", home="cocodataset.org",
                             used=_NOT_USED),
    "pixelprose": _captions("CC-BY-4.0", _HUB + "tomg-group-umd/pixelprose"),
    "megalith": _captions("check", _HUB + "madebyollin/megalith-10m"),
    "dalle3_1m": _captions("check", _HUB + "ProGamerGov/synthetic-dataset-1m-dalle3-high-quality-captions"),
    "laion_aesthetics": _captions("check", "laion.ai"),
    "captioned": _captions("check", "any set that img2dataset fetched"),
    "densefusion": _captions("check", _HUB + "BAAI/DenseFusion-1M"),
    # Grounding
    "grit": DataSet(read=grit.read, category="grounding", licence="MS-PL", home=_HUB + "zzliang/GRIT",
                    used="pretraining: grounding and grounded conversation"),
    "objects365": DataSet(read=objects365.read, category="grounding", licence="check", home="objects365.org",
                          used="pretraining: grounding", languages=_NAMED, negatives=0.25),
    "coco": DataSet(read=coco.read_boxes, category="grounding", licence="CC-BY-4.0", home="cocodataset.org",
                    used=_NOT_USED, languages=_NAMED, negatives=0.25),
    "bccd": DataSet(read=boxed_photos.read, category="grounding", licence="MIT",
                    home="github.com/Shenggan/BCCD_Dataset", used=_NOT_USED, negatives=0.0),
    "cards": DataSet(read=boxed_photos.read, category="grounding", licence="Apache-2.0", home="github.com/"
                     "EdjeElectronics/TensorFlow-Object-Detection-API-Tutorial-Train-Multiple-Objects-Windows-10",
                     used=_NOT_USED, negatives=0.25),
    "v3det": DataSet(read=coco.read_v3det, category="grounding", licence="check", home="v3det.openxlab.org.cn",
                     used="SFT: grounding", languages=_NAMED),
    "refcoco": _refcoco(_HUB + "lmms-lab/RefCOCO", "SFT: grounding"),
    "refcoco+": _refcoco(_HUB + "lmms-lab/RefCOCOplus", "SFT: grounding"),
    "refcocog": _refcoco(_HUB + "lmms-lab/RefCOCOg", "SFT: grounding"),
    "waveui": DataSet(read=waveui.read, category="gui", licence="check", home=_HUB + "agentsea/wave-ui-25k",
                      used="SFT: grounding"),
    "flickr30k_entities": DataSet(read=flickr30k_entities.read, category="grounded_conversation", licence="check",
                                  home="bryanplummer.com/Flickr30kEntities", used="SFT: grounded conversation"),
    # Questions about images
    "vqav2": DataSet(read=vqav2.read, category="vqa", licence="CC-BY-4.0", home="visualqa.org", used="SFT: general"),
    "gqa": DataSet(read=gqa.read, category="vqa", licence="CC-BY-4.0", home="cs.stanford.edu/people/dorarad/gqa",
                   used="SFT: general, OCR"),
    "easy_vqa": DataSet(read=easy_vqa.read, category="vqa", licence="MIT", home="pypi.org/project/easy-vqa",
                        used=_NOT_USED),
    "llava": _llava("vqa", "check", _HUB + "liuhaotian/LLaVA-Instruct-150K", _NOT_USED),
    "allava": _llava("vqa", "check", _HUB + "FreedomIntelligence/ALLaVA-4V", "SFT: general"),
    "llava_next_interleave": _llava("vqa", "check", _HUB + "lmms-lab/M4-Instruct-Data", "SFT: general"),
    "cauldron": DataSet(read=cauldron.read, category="vqa", licence="check", home=_HUB + "HuggingFaceM4/the_cauldron",
                        used="SFT: general, OCR, tables and charts, reasoning"),
    "nlvr": DataSet(read=nlvr.read, category="reasoning", licence="CC-BY-4.0", home="lil.nlp.cornell.edu/nlvr",
                    used=_NOT_USED, negatives=0.0),
    "ai2d": DataSet(read=ai2d.read, category="academic", licence="check", home="prior.allenai.org/projects/diagrams",
                    used="evaluation"),
    "iconqa": DataSet(read=iconqa.read, category="reasoning", licence="CC-BY-SA-4.0", home="iconqa.github.io",
                      used="SFT: reasoning"),
    "mathv360k": _llava("reasoning", "Apache-2.0", _HUB + "Zhiqiang007/MathV360K", "SFT: reasoning"),
    # Text in images, documents, tables, charts, code
    "docvqa": DataSet(read=docvqa.read, category="document", licence="check", home="docvqa.org", used="SFT: OCR"),
    "infovqa": DataSet(read=infovqa.read, category="document", licence="check", home="docvqa.org", used="SFT: OCR"),
    "docmatix": DataSet(read=cauldron.read, category="document", licence="MIT", home=_HUB + "HuggingFaceM4/Docmatix",
                        used="pretraining: documents"),
    "textvqa": DataSet(read=textvqa.read, category="ocr", licence="CC-BY-4.0", home="textvqa.org", used="SFT: OCR"),
    "arxivqa": DataSet(read=arxivqa.read, category="table_chart", licence="CC-BY-SA-4.0",
                       home=_HUB + "MMInstruction/ArxivQA", used="SFT: tables and charts"),
    "tabfact": DataSet(read=tabfact.read, category="table_chart", licence="check",
                       home="github.com/wenhuchen/Table-Fact-Checking", used="SFT: tables and charts", draws=True),
    "sroie": DataSet(read=sroie.read, category="ocr", licence="check", home="rrc.cvc.uab.es/?ch=13", used=_NOT_USED,
                     negatives=0.25),
    "chartqa": DataSet(read=chartqa.read, category="table_chart", licence="GPL-3.0-only",
                       home="github.com/vis-nlp/ChartQA", used="evaluation"),
    "pubtabnet": DataSet(read=pubtabnet.read, category="table_chart", licence="check",
                         home="github.com/ibm-aur-nlp/PubTabNet", used="pretraining: tables"),
    "wikitables": DataSet(read=wikitables.read, category="table_chart", licence="CC-BY-SA-4.0",
                          home="github.com/ppasupat/WikiTableQuestions", used=_NOT_USED, draws=True),
    "websight": DataSet(read=websight.read, category="web_to_code", licence="CC-BY-4.0",
                        home=_HUB + "HuggingFaceM4/WebSight", used="pretraining: web to code"),
    # Text only
    "text_table": DataSet(read=text_table.read, category="text", licence="check", home="any table of texts",
                          used=_NOT_USED, languages=()),
    "freedict": DataSet(read=freedict.read, category="text", licence="CC-BY-SA-3.0",
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
