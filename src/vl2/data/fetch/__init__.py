"""Pictures, names and small sets that package registries carry, got by name and laid out for the sources that draw."""
