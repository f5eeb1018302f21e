import base64
import io
from importlib.metadata import version

from _shared import API, PICTURE_DATA, scenario
from docling.datamodel.base_models import DocumentStream, InputFormat
from docling.datamodel.pipeline_options import VlmConvertOptions, VlmPipelineOptions
from docling.datamodel.pipeline_options_vlm_model import ResponseFormat
from docling.datamodel.stage_model_specs import VlmModelSpec
from docling.datamodel.vlm_engine_options import ApiVlmEngineOptions
from docling.document_converter import DocumentConverter, ImageFormatOption, PdfFormatOption
from docling.pipeline.vlm_pipeline import VlmPipeline
from PIL import Image

print("docling", version("docling"))
SERVER = ApiVlmEngineOptions(
    url=f"{API}/chat/completions",
    headers={"Authorization": "Bearer none"},
    params={"model": "nano", "max_tokens": 6},
    timeout=300,
)
TASK = VlmModelSpec(
    name="DeepSeek-VL2",
    default_repo_id="deepseek-ai/deepseek-vl2-tiny",
    prompt="Transcribe the whole page.",
    response_format=ResponseFormat.MARKDOWN,
)
OPTIONS = VlmPipelineOptions(
    enable_remote_services=True, vlm_options=VlmConvertOptions(model_spec=TASK, engine_options=SERVER)
)
CONVERTER = DocumentConverter(
    format_options={
        InputFormat.PDF: PdfFormatOption(pipeline_cls=VlmPipeline, pipeline_options=OPTIONS),
        InputFormat.IMAGE: ImageFormatOption(pipeline_cls=VlmPipeline, pipeline_options=OPTIONS),
    }
)


def convert(name, data):
    converted = CONVERTER.convert(DocumentStream(name=name, stream=io.BytesIO(data)))
    return converted.status, converted.document.export_to_markdown()


picture = base64.b64decode(PICTURE_DATA)
page = io.BytesIO()
Image.open(io.BytesIO(picture)).convert("RGB").save(page, format="PDF")
scenario("a page of a PDF", lambda: convert("page.pdf", page.getvalue()))
scenario("a picture", lambda: convert("picture.png", picture))
