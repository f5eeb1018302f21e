"""Pydantic models of request bodies. The OpenAPI document is generated from them."""
