"""Recipes that make training records by drawing: every answer is known because the picture was made from it."""
