# mypy: allow-untyped-calls
"""Transformers integration (extra `hf`): importing it registers the released model type "deepseek_vl_v2".

    import vl2.hf
    from transformers import AutoModelForCausalLM, AutoProcessor
    model = AutoModelForCausalLM.from_pretrained("deepseek-ai/deepseek-vl2-tiny")

Config, model and processor are this package's own: with them the Auto classes run no code of a checkpoint, even
with trust_remote_code=True (transformers 5.0 still did, 5.5 does not). Nothing else in vl2 imports transformers.

The released files of the DeepSeek-OCR family have the same model type. Here they are refused by name; their own code
runs in a process that does not import vl2.hf. Checkpoints converted for transformers have model types of their own.
"""

from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

from vl2.hf.cache import VL2Cache
from vl2.hf.collator import VL2DataCollator
from vl2.hf.config import VL2Config
from vl2.hf.model import VL2ForCausalLM, VL2Output
from vl2.hf.processor import DeepseekVLV2Processor, VL2Processor

__all__ = [
    "DeepseekVLV2Processor",
    "VL2Cache",
    "VL2Config",
    "VL2DataCollator",
    "VL2ForCausalLM",
    "VL2Output",
    "VL2Processor",
]

# exist_ok: these classes take precedence over any that a later transformers has for the same model type.
AutoConfig.register(VL2Config.model_type, VL2Config, exist_ok=True)
AutoModelForCausalLM.register(VL2Config, VL2ForCausalLM, exist_ok=True)
AutoModelForImageTextToText.register(VL2Config, VL2ForCausalLM, exist_ok=True)
AutoProcessor.register(VL2Config, DeepseekVLV2Processor, exist_ok=True)
