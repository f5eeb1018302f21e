"""A start for an encoder that has no weights: recognition, patch by patch, of what is drawn there.

The paper starts from SigLIP. A small encoder of another shape has no such weights, and from random ones the next-token
loss does not learn to read: the language model finds nothing in the picture to hold on to, and routes every token
alike. Labels for every patch are many times denser than an answer in words, and the drawer knows them for nothing.
"""
