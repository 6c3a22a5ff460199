"""What the post-processor of a tokenizer.json says about special tokens.

A post-processor puts tokens around one text ("single") or two ("pair"):

    {"type": "TemplateProcessing",
     "single": [{"SpecialToken": {"id": "[CLS]"}}, {"Sequence": {"id": "A"}}, {"SpecialToken": {"id": "[SEP]"}}], …}

From that follow `add_bos_token`, `add_eos_token` and `add_sep_token`, and the tokens themselves where
tokenizer_config.json does not name them. Source: `SpecialVocab` of llama.cpp's gguf-py.
"""

from __future__ import annotations

from typing import Any

__all__ = ["read_post_processor"]


def read_post_processor(processor: Any, settings: dict[str, Any], add: dict[str, bool]) -> list[str]:
    """Fill in `settings` (``bos_token`` …) and `add` (kind → whether a text gets the token).

    Returns
    -------
    kinds of tokens that it found besides the usual ones: ``eot`` or ``eom``, when a text does not end with what
    `settings` call eos.
    """
    known = bool(settings)
    tokens = _Tokens(settings)
    if known:
        tokens.default("bos", tokens["cls"])
        tokens.default("eos", tokens["sep"])
    processor = processor if isinstance(processor, dict) else {}
    for part in _dicts(processor.get("processors", [processor])):
        kind = part.get("type")
        if kind == "ByteLevel":
            add.setdefault("bos", False)
            add.setdefault("eos", False)
        elif kind == "RobertaProcessing":
            add.update(bos=True, eos=True, sep=True)
            if known:
                tokens.default("cls", _first(part.get("cls"), tokens["bos"]))
                tokens.default("sep", _first(part.get("sep"), tokens["eos"]))
        elif kind == "TemplateProcessing":
            _template(part, tokens, add, known)
    return tokens.more


class _Tokens:
    """The texts (or descriptions) of special tokens, kept in tokenizer_config.json's `<kind>_token`."""

    def __init__(self, settings: dict[str, Any]):
        self._settings = settings
        self.more: list[str] = []

    def __getitem__(self, kind: str) -> Any:
        return self._settings.get(f"{kind}_token")

    def __setitem__(self, kind: str, token: Any) -> None:
        self._settings[f"{kind}_token"] = token

    def default(self, kind: str, token: Any) -> None:
        if not self[kind] and token:
            self[kind] = token


def _template(part: dict[str, Any], tokens: _Tokens, add: dict[str, bool], known: bool) -> None:
    single, pair = _dicts(part.get("single")), _dicts(part.get("pair"))
    first = last = None
    if len(single) > 1:
        if first := _special(single[0]):
            if known and first not in (tokens["bos"], tokens["cls"]):
                tokens.default("bos", first)
                tokens.default("cls", first)
            add["bos"] = not known or first in (tokens["bos"], tokens["cls"])
        if last := _special(single[-1]):
            if known and last != tokens["eos"]:
                # What was called eos ends a turn, not a text.
                if (kind := next((k for k in ("eot", "eom") if k not in tokens.more), None)) is not None:
                    tokens.more.append(kind)
                    tokens[kind] = tokens["eos"]
                tokens["eos"] = last
            add["eos"] = True
    # A [sep] [eos] B, without what stands around a single text as well.
    start = 1 if pair and first and _special(pair[0]) == first else 0
    stop = len(pair) - 1 if pair and last and _special(pair[-1]) == last else len(pair)
    pair = pair[start:stop]
    if len(pair) > 2 and _sequence(pair[0]) == "A" and _sequence(pair[-1]) == "B":
        _separator(pair[1:-1], tokens, add, known, last)


def _separator(between: list[dict[str, Any]], tokens: _Tokens, add: dict[str, bool], known: bool, last: Any) -> None:
    ends = (tokens["sep"], tokens["eos"]) if known else (None, last)
    add["sep"] = bool(_special(between[0])) and _special(between[0]) in ends and not last
    if len(between) == 2 and _special(between[1]) and _special(between[1]) in ends:
        add["sep"] = True
    if add["sep"] and known:
        tokens.default("sep", tokens["eos"])


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _special(entry: dict[str, Any]) -> Any:
    token = entry.get("SpecialToken")
    return token.get("id") if isinstance(token, dict) else None


def _sequence(entry: dict[str, Any]) -> Any:
    sequence = entry.get("Sequence")
    return sequence.get("id") if isinstance(sequence, dict) else None


def _first(value: Any, default: Any) -> Any:
    return value[0] if isinstance(value, list) and value else default
