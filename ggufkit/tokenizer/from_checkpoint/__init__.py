"""Vocabularies: a checkpoint's tokenizer files as `tokenizer.*` metadata, one module a kind.

Each offers a function of (checkpoint, config) that yields typed metadata pairs in the order of llama.cpp's
converter, and raises `FileError` when the checkpoint has no tokenizer of the kind.
"""
