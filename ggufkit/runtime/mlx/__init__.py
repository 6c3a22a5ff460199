"""Run models with MLX: on Apple's GPUs, and on any CPU that MLX runs on."""
