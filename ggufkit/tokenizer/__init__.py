"""Tokenizers from GGUF metadata: the tokens of llama.cpp, to the last one.

tokenizer = load_tokenizer(model)            # of run.tokenizer
ids = tokenizer.encode("def main(")          # [1, 822, 1667, 3]
tokenizer.decode(ids)                        # "def main("

text ── special ──► pieces of text, special tokens ── spm, bpe, wordpiece or unigram ──► ids
"""
