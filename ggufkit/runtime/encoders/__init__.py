"""Encoders of images and sound beside a language model: what they give stands in its prompts as tokens do.

    media = load_media("mmproj.gguf", model)
    prompt = media.prompt("What is on <__media__>?", [open("cat.png", "rb").read()])       # token ids

`picture` runs towers of patches, `sound` those of mel spectrograms; `arch.tower` says what they are.
"""
