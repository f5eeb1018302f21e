"""What the built-in model is made from: archives of package registries and files at hand, each pinned by its hash."""
