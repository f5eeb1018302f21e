"""Images and messages to tensors, and the model's text back to boxes: everything before and after the network."""
