"""A whole stage of training data from one file: drawn, converted and stored sources, filtered, one store a category."""
