"""Text that obeys a grammar: which tokens may come next, for a sampler that takes no others.

    grammars = Grammars(model.tokenizer, model.vocabulary)
    constraint = grammars.start(Grammar.json_schema({"type": "object", …}))
    while not constraint.done:
        token = sampler.draw(allowed(logits, constraint.mask()))
        constraint.accept(token)

`grammar` is what can be asked for (JSON Schema, JSON, Lark, GBNF, a regular expression), `rewrite` what of a
schema is said in other words first, `gbnf` llama.cpp's language in Lark's, `matcher` the tokens that fit, by llguidance
(the extra `grammar`), `mask` what is done with them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Constraint"]


class Constraint(Protocol):
    """What a text's tokens must obey. Called by one thread at a time."""

    @property
    def done(self) -> bool:
        """Whether nothing can follow: then the text ends."""

    def mask(self) -> np.ndarray | None:
        """The tokens that may come next: ⌈vocabulary / 32⌉ words of uint32, token t is bit t % 32 of word t // 32.

        None allows all. Where the text may end, ends of the vocabulary are among them.
        """

    def accept(self, token: int) -> None:
        """This token, which the last mask allowed, has been chosen. Not called with one that ends the text."""
