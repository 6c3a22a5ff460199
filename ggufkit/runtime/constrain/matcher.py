"""The tokens that a grammar allows, by llguidance."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from ggufkit.errors import MissingDependency, UsageError, printable
from ggufkit.runtime.constrain.grammar import Grammar
from ggufkit.tokenizer.run.vocab import CONTROL, UNKNOWN, UNUSED

if TYPE_CHECKING:
    from ggufkit.tokenizer.run.tokenizer import Tokenizer

__all__ = ["Grammars", "Matcher"]

# A mask takes an eighth of a second at most, and an automaton of a grammar's terminals 100 MB.
_LIMITS: dict[str, Any] = {
    "max_lexer_states": 50_000,
    "initial_lexer_fuel": 500_000,
    "step_lexer_fuel": 100_000,
    "step_max_items": 50_000,
    "verbose_errors": False,
}
_KEPT = 64  # compiled grammars


class Grammars:
    """The grammars of a model: they share what is known of its tokens.

    Parameters
    ----------
    tokenizer : the model's.
    vocabulary : how many logits there are; by default one a token.

    Raises
    ------
    MissingDependency : llguidance is not installed.
    """

    def __init__(self, tokenizer: Tokenizer, vocabulary: int | None = None):
        self._tokens = _Tokens(tokenizer).known(vocabulary or len(tokenizer))
        self._compiled: dict[Grammar, Any] = {}
        self._lock = threading.Lock()

    def start(self, grammar: Grammar) -> Matcher:
        """A constraint for one text.

        Raises
        ------
        UsageError : the grammar cannot be compiled; the message says where.
        """
        with self._lock:
            compiled = self._compiled.pop(grammar, None)
        if compiled is None:
            compiled = self._compile(grammar)
        with self._lock:
            self._compiled[grammar] = compiled
            while len(self._compiled) > _KEPT:
                del self._compiled[next(iter(self._compiled))]
        return Matcher(compiled.deep_copy())

    def _compile(self, grammar: Grammar) -> Any:
        from llguidance import LLMatcher, LLParserLimits

        grammar.check()
        compiled = LLMatcher(self._tokens, grammar.compiled(), log_level=0, limits=LLParserLimits(**_LIMITS))
        for _ in range(2):  # the second goes on with what the first has found out, and may be too much
            first = compiled.deep_copy()
            if not first.is_error():
                first.compute_bitmask()  # where one that nothing obeys fails
            if not first.is_error():
                continue
            reason = printable(first.get_error().partition("\n")[0], 400)
            raise UsageError(f"the {grammar.kind} cannot be compiled: {reason}")
        return compiled


class Matcher:
    """Where a text stands in its grammar: a `Constraint`."""

    def __init__(self, matcher: Any):
        self._matcher = matcher

    @property
    def done(self) -> bool:
        """Whether nothing can follow."""
        return bool(self._matcher.is_stopped())

    def mask(self) -> np.ndarray:
        """Words of uint32, a bit for each token that may come next.

        Raises
        ------
        UsageError : the grammar has become too complex for its limits.
        """
        words = np.frombuffer(self._matcher.compute_bitmask(), np.uint32)
        self._check()
        return words

    def accept(self, token: int) -> None:
        """This token has been chosen.

        Raises
        ------
        UsageError : it is not allowed here.
        """
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            error = printable(self._matcher.get_error().partition("\n")[0], 200)
            raise UsageError(f"the grammar cannot go on from here: {error}")


class _Tokens:
    """A vocabulary as llguidance's `TokenizerWrapper` has it."""

    is_tokenizer_wrapper = True

    def __init__(self, tokenizer: Tokenizer):
        vocab = tokenizer.vocab
        special = [i for i, a in enumerate(vocab.attributes) if a & (CONTROL | UNKNOWN | UNUSED)]
        # Marks that a template writes as tokens are no part of an ordinary text, either.
        special += [
            i
            for i in vocab.special()
            if not vocab.attributes[i] & (CONTROL | UNKNOWN | UNUSED)
            and vocab.texts[i].startswith(("<", "["))
            and vocab.texts[i].endswith((">", "]"))
        ]
        self._tokenizer = tokenizer
        self.ends = sorted(vocab.ends)
        self.tokens = [tokenizer.piece(i, special=True) for i in range(len(tokenizer))]
        self.special_token_ids = special
        self.bos_token_id = vocab.bos
        self.eos_token_id = self.ends[0] if self.ends else 0

    def __call__(self, text: str | bytes) -> list[int]:
        text = text.decode("utf-8", "surrogateescape") if isinstance(text, bytes) else text
        return self._tokenizer.encode(text, add_special=False, parse_special=False, first=False)

    def known(self, vocabulary: int) -> Any:
        try:
            from llguidance import LLTokenizer
        except ImportError:
            raise MissingDependency("grammars need the package llguidance: pip install 'ggufkit[grammar]'") from None
        self.tokens += [b""] * (vocabulary - len(self.tokens))
        return LLTokenizer(self, n_vocab=vocabulary, eos_token=self.ends or None)  # type: ignore[arg-type]
