"""Quantize weights to 8 and 4 bits: the formats, the quantized layers, and the format of each part of the model."""
