"""Precision policies: which format each tensor gets, and why.

Presets are llama-quantize's file types as data (`presets`); users add rules of their own (`custom`). `decide` walks
the tensors in file order; the first rule that matches decides, and its words are the reason.
"""
