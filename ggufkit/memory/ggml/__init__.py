"""llama.cpp's graph of one pass, and where ggml's allocator would put its tensors: bytes of the compute buffer.

graph       tensors, views and the order in which they are computed
allocator   best fit with reuse of what is no longer needed, as ggml does it
layers      the graphs of the kinds of layers, from the names and shapes of a model's tensors
"""
