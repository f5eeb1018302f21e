# mypy: allow-untyped-calls
"""Transformers integration (extra `hf`): importing this package registers "deepseek_vl_v2" and "unlimited-ocr".

    import vl2.hf
    from transformers import AutoModelForCausalLM, AutoProcessor
    model = AutoModelForCausalLM.from_pretrained("deepseek-ai/deepseek-vl2-tiny")

The Auto classes then use the config, model and processor of this package and run no code from a checkpoint, even with
trust_remote_code=True (transformers 5.0 still ran it, 5.5 does not). Nothing else in vl2 imports transformers.

The released checkpoints of the DeepSeek-OCR family have one of these model types, and these classes open them too:
config.json says which model it is. The error for any other model of these types names it. Checkpoints that were
converted for transformers have other model types.
"""

from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

from vl2.hf.cache import VL2Cache
from vl2.hf.collator import VL2DataCollator
from vl2.hf.config import UnlimitedOCRConfig, VL2Config
from vl2.hf.model import UnlimitedOCRForCausalLM, VL2ForCausalLM, VL2Output
from vl2.hf.processor import DeepseekVLV2Processor, VL2Processor

__all__ = [
    "DeepseekVLV2Processor",
    "UnlimitedOCRConfig",
    "UnlimitedOCRForCausalLM",
    "VL2Cache",
    "VL2Config",
    "VL2DataCollator",
    "VL2ForCausalLM",
    "VL2Output",
    "VL2Processor",
]

# exist_ok: a later version of transformers may have classes for these model types, and ours must replace them.
for _config, _model in ((VL2Config, VL2ForCausalLM), (UnlimitedOCRConfig, UnlimitedOCRForCausalLM)):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModelForCausalLM.register(_config, _model, exist_ok=True)
    AutoModelForImageTextToText.register(_config, _model, exist_ok=True)
    AutoProcessor.register(_config, DeepseekVLV2Processor, exist_ok=True)
