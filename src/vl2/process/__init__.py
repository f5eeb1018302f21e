"""Everything before and after the network: turn images and messages into tensors, and the model's text into boxes."""
