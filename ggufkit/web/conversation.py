"""A model's chat template, run on sample conversations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ggufkit.errors import GgufkitError

if TYPE_CHECKING:
    from ggufkit.gguf.reader import GGUF
    from ggufkit.tokenizer.run.vocab import Vocab

__all__ = ["SAMPLES", "conversations_of"]

_TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
_QUESTION = {"role": "user", "content": "What is a GGUF file?"}
_ANSWER = {"role": "assistant", "content": "A file with a model's weights and all that it takes to run them."}

# What is shown: name → messages, and what the template gets besides.
SAMPLES: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "A question": ([_QUESTION], {}),
    "With a system message": ([{"role": "system", "content": "Answer in one sentence."}, _QUESTION], {}),
    "Two turns": ([_QUESTION, _ANSWER, {"role": "user", "content": "And a block?"}], {}),
    "A finished answer": ([_QUESTION, _ANSWER], {"add_generation_prompt": False}),
    "With a tool": ([{"role": "user", "content": "Is it warm in Oslo?"}], {"tools": [_TOOL]}),
    "Without thinking": ([_QUESTION], {"enable_thinking": False}),
}
_CHARACTERS = 20_000


def conversations_of(model: GGUF, vocab: Vocab) -> dict[str, Any]:
    """The default template and what it makes of each sample, or why it makes nothing of it."""
    from ggufkit.runtime.chat import read_template

    try:
        template = read_template(model, vocab)
    except GgufkitError as e:
        return {"missing": e.message}
    shown = []
    for name, (messages, given) in SAMPLES.items():
        try:
            text, problem = template.render(messages, **given), ""
        except GgufkitError as e:
            text, problem = "", e.message
        shown.append({"name": name, "messages": messages, "text": text[:_CHARACTERS], "problem": problem})
    return {"template": template.source[: 4 * _CHARACTERS], "shown": shown}
