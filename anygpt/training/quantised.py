"""QLoRA: the frozen weights under the adapters in four bits (Dettmers et al. 2023)."""

import importlib.util

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from anygpt.errors import ConfigError

BITS = 4 + 8 / 64 + 32 / (64 * 256)
"""Of a weight: its code, a scale of 8 bits for every 64 weights, and a float32 for every 256 scales (section 3)."""


def four_bits(dtype: torch.dtype) -> BitsAndBytesConfig:
    """NF4 with double quantisation for the matrices of all layers, computed in `dtype`.

    Embeddings, head and norms stay in the model's own type. Raises ConfigError where bitsandbytes is missing.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError("lora.bits: 4 needs the package bitsandbytes: pip install 'anygpt[qlora]'")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=["lm_head"],
    )


def keep_trainable(model: nn.Module) -> None:
    """Keep bitsandbytes from packing weights anew for a CPU that has products of bfloat16.

    It does so at the first call without gradients, such as validation, for good, and passes no gradients from then on.
    """
    for module in model.modules():
        if "support_avx512bf16_for_cpu" in vars(module):
            vars(module)["support_avx512bf16_for_cpu"] = False
