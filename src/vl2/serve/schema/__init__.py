"""What clients may send, as pydantic models: the API's own description is made from them."""
