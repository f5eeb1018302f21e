"""Weights in 8 and 4 bits: the formats, the layers that hold them, and which parts of the model take which."""
