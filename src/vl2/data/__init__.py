"""Training data: one record format, sources that make records, and the plan that packs them."""
