"""Source checkpoints: a folder with `config.json`, tokenizer files and weights, as Hugging Face publishes them."""
