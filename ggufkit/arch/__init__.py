"""Architectures as data: how a checkpoint's hyperparameters, tensors and vocabulary become GGUF's.

`spec` defines what an architecture is made of, `specs/` has one file an architecture, `transforms` the few named
things that can be done to tensors, `vocab/` the vocabularies and `card` the `general.*` metadata.
"""
