"""Change a GGUF file's header without copying its data, where that can be done.

    general.name  …  tokenizer.ggml.tokens  …  tokenizer.chat_template  ggufkit.pad  │ tensors │ 0… │ data
                                               └── longer by 40 bytes ──┘└ shorter by 40 ┘

A header that ends at the same byte as before, or in the same padding, can be written over the old one: in place. The
filler key `ggufkit.pad`, a string, gives and takes room for that. Any other header needs a new file with a copy of the
data, which replaces the old one.

A crash leaves the old file or the new one:

    in place   model.gguf.journal   the old bytes, on the disk before the first new byte is written. Whoever opens
                                    the file while it exists takes the edit back first.
               model.gguf.undo      the same file, renamed when the new bytes are on the disk: for `undo`.
    new file   complete and on the disk before it takes the old one's name.

    draft    the header as it shall be: keys, tensors, tokens
    spare    where it fits: in place, or how the new file is laid out
    commit   put it on the disk
    undo     the journal; taking edits back
    access   who else has the file open
    session  `Edit`: all of it behind one context manager
"""
