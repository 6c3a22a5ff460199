"""The GGML block formats: `table` (one row each), a file per family (kernels), and `codec`, the only door to them."""
