"""How families of models write calls and thoughts: a row each, in the signs of their chat templates.

A new family is a row here; `tools/verify/verify_replies.py` renders a folder of chat templates and reads back what they
write.

Source: the chat templates that the models come with (llama.cpp has a collection in models/templates).
"""

from __future__ import annotations

from dataclasses import dataclass

from ggufkit.serve.replies.layout import first_mark, layout_of, marks_of

__all__ = ["FUNCTIONARY", "HARMONY", "MUSE", "STYLES", "THOUGHTS", "Style", "Thoughts"]


@dataclass(frozen=True)
class Style:
    """How calls are written.

    Attributes
    ----------
    name : after the models that had it first.
    call : the layout of one call, or of all that come together.
    parameter : the layout of one of {parameters}.
    section : what stands around all calls.
    between : what stands between two calls.
    quote : what stands around strings in {braces}, and before the tags of {elements}.
    bare : there is no mark: only what begins a reply, and names a tool, is a call.
    optional : a mark that may come before a bare call.
    keys : of the name and the arguments in {call} and {calls}.
    known_by : what a template of this style has in it, where it does not write calls itself.
    drops : marks around the text for the user, which are not shown.
    thinks : what stands around thoughts, of a style with a parser of its own.
    """

    name: str
    call: str
    parameter: str = ""
    section: tuple[str, str] = ("", "")
    between: str = ""
    quote: str = ""
    bare: bool = False
    optional: str = ""
    keys: tuple[str, str] = ("name", "arguments")
    known_by: tuple[str, ...] = ()
    drops: tuple[str, ...] = ()
    thinks: tuple[str, str] = ("", "")

    @property
    def opening(self) -> str:
        """The mark that begins a call; "" of a bare one."""
        return self.section[0].strip() or first_mark(layout_of(self.call))

    @property
    def marks(self) -> list[str]:
        """All that is no word of the model's."""
        found = [*marks_of(layout_of(self.call)), *marks_of(layout_of(self.parameter))]
        return [mark for mark in (*found, *map(str.strip, self.section), self.optional, *self.drops) if mark]

    @property
    def telling(self) -> list[str]:
        """The marks that a template of this style has in it."""
        if self.known_by:
            return list(self.known_by)
        if self.bare:
            return [f'"{key}"' for key in self.keys]
        marks = [*marks_of(layout_of(self.call)), *marks_of(layout_of(self.parameter)), *map(str.strip, self.section)]
        return [mark for mark in marks if len(mark) > 3]


@dataclass(frozen=True)
class Thoughts:
    """What stands around thoughts.

    Attributes
    ----------
    opening, closing : the marks.
    """

    opening: str
    closing: str


# Read by parsers of their own (`harmony`, `muse`, `functionary`); a call is forced by these layouts.
HARMONY = Style(
    "harmony",
    "<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{json}<|call|>",
    thinks=("<|channel|>analysis<|message|>", "<|end|><|start|>assistant"),
)
MUSE = Style(
    "muse-glimmer",
    ' to={name}<|message|><atem:function_calls>\n<atem:invoke name="{name}">\n{parameters}</atem:invoke>\n'
    "</atem:function_calls>",
    parameter='<atem:parameter name="{key}">{value}</atem:parameter>\n',
    between="<|eom|><|start|>assistant",
    thinks=(" to=self<|message|>", "<|eom|><|start|>assistant"),
)
FUNCTIONARY = Style("functionary-3.2", "{name}\n{json}", between=">>>")

STYLES = (
    # One with more marks before one that has a part of them.
    Style(
        "deepseek-dsml",
        '<｜DSML｜invoke name="{name}">\n{parameters}</｜DSML｜invoke>\n',
        parameter='<｜DSML｜parameter name="{key}" string="{string}">{value}</｜DSML｜parameter>\n',
        section=("<｜DSML｜function_calls>\n", "</｜DSML｜function_calls>"),
    ),
    Style(
        "deepseek-dsml-tools",
        '<｜DSML｜invoke name="{name}">\n{parameters}</｜DSML｜invoke>\n',
        parameter='<｜DSML｜parameter name="{key}" string="{string}">{value}</｜DSML｜parameter>\n',
        section=("<｜DSML｜tool_calls>\n", "</｜DSML｜tool_calls>"),
    ),
    Style(
        "deepseek-r1",
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{json}\n```<｜tool▁call▁end｜>",
        section=("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
        between="\n",
    ),
    Style(
        "deepseek-v3.1",
        "<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{json}<｜tool▁call▁end｜>",
        section=("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
    ),
    Style(
        "kimi-k2",
        "<|tool_call_begin|>{name}<|tool_call_argument_begin|>{json}<|tool_call_end|>",
        section=("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
    ),
    Style(
        "kimi-k3",
        '<|open|>call tool="{name}" index="{index}"<|sep|>{parameters}<|close|>call<|sep|>',
        parameter='<|open|>argument key="{key}" type="{type}"<|sep|>{value}<|close|>argument<|sep|>',
        section=("<|open|>tools<|sep|>", "<|close|>tools<|sep|>"),
        drops=("<|open|>response<|sep|>", "<|close|>response<|sep|>", "<|close|>message<|sep|>", "<|end_of_msg|>"),
    ),
    Style(
        "minimax-m3",
        ']<]minimax[>[<invoke name="{name}">{elements}]<]minimax[>[</invoke>\n',
        section=("]<]minimax[>[<tool_call>\n", "]<]minimax[>[</tool_call>"),
        quote="]<]minimax[>[",
        drops=("</mm:think>",),
    ),
    Style(
        "minimax-m2",
        '<invoke name="{name}">\n{parameters}</invoke>\n',
        parameter='<parameter name="{key}">{value}</parameter>\n',
        section=("<minimax:tool_call>\n", "</minimax:tool_call>"),
    ),
    Style(
        "hunyuan",
        "<tool_call:opensource>{name}<tool_sep:opensource>\n{parameters}</tool_call:opensource>\n",
        parameter="<arg_key:opensource>{key}</arg_key:opensource>\n<arg_value:opensource>{value}</arg_value:opensource>\n",
        section=("<tool_calls:opensource>\n", "</tool_calls:opensource>"),
    ),
    Style(
        "seed",
        "<seed:tool_call>\n<function={name}>\n{parameters}</function>\n</seed:tool_call>",
        parameter="<parameter={key}>{value}</parameter>\n",
        between="\n",
    ),
    Style(
        "qwen3-coder",
        "<tool_call>\n<function={name}>\n{parameters}</function>\n</tool_call>",
        parameter="<parameter={key}>\n{value}\n</parameter>\n",
        between="\n",
    ),
    Style(
        "glm",
        "<tool_call>{name}\n{parameters}</tool_call>",
        parameter="<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>\n",
        between="\n",
    ),
    Style(
        "k2-horizon",
        "<ifm|tool_call>{name}\n{parameters}</ifm|tool_call>\n",
        parameter="<ifm|arg_key>{key}</ifm|arg_key>\n<ifm|arg_value>{value}</ifm|arg_value>\n",
        section=("<ifm|tool_calls>\n", "</ifm|tool_calls>"),
    ),
    Style("gigachat", "<|function_call|>{call}"),
    Style("gigachat-3", "<|message_sep|>\n\nfunction call<|role_sep|>\n{call}"),
    Style(
        "solar",
        "<|tool_call:begin|>{id}<|tool_call:name|>{name}<|tool_call:args|>{json}<|tool_call:end|>",
        section=("<|tool_calls|>", "<|calls|>"),
    ),
    Style(
        "command-r7b",
        "<|START_ACTION|>[\n    {calls}\n]<|END_ACTION|>",
        keys=("tool_name", "parameters"),
        drops=("<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>"),
    ),
    Style("command-r", "Action:\n```json\n[\n    {calls}\n]\n```", keys=("tool_name", "parameters")),
    Style("gemma-4", "<|tool_call>call:{name}{braces}<tool_call|>", quote='<|"|>'),
    Style("gemma-3", "<start_function_call>call:{name}{braces}<end_function_call>", quote="<escape>"),
    Style("lfm2", "<|tool_call_start|>[{python}]<|tool_call_end|>", known_by=("<|tool_list_start|>",)),
    Style("lfm2.5", "<|tool_call_start|>[{python}]<|tool_call_end|>", known_by=("List of tools: [",)),
    Style("apertus", "<|tools_prefix|>[{keyed}]<|tools_suffix|>"),
    Style("mistral", "[TOOL_CALLS]{name}⟨[CALL_ID]{id}⟩[ARGS]{json}"),
    Style("mistral-list", "[TOOL_CALLS]⟨[⟩{calls}⟨]⟩"),
    Style("nemotron", "<TOOLCALL>[{calls}]</TOOLCALL>"),
    Style("apriel", "<tool_calls>[{calls}]</tool_calls>"),
    Style("minimax-m1", "<tool_calls>\n{calls}\n</tool_calls>"),
    Style(
        "minicpm",
        '<function name="{name}">{parameters}</function>',
        parameter='<param name="{key}">{value}</param>',
    ),
    Style("functionary", "<function={name}>{json}</function>"),
    Style("phi-4", "<|tool_call|>[{calls}]<|/tool_call|>"),
    Style("granite", "<|tool_call|>⟨[⟩{calls}⟨]⟩"),
    Style("hermes", "<tool_call>\n{call}\n</tool_call>", between="\n"),
    Style("llama", "{calls}", bare=True, optional="<|python_tag|>", keys=("name", "parameters")),
)

THOUGHTS = (
    Thoughts("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]"),
    Thoughts("<seed:think>", "</seed:think>"),
    Thoughts("<think:opensource>", "</think:opensource>"),
    Thoughts("<|START_THINKING|>", "<|END_THINKING|>"),
    Thoughts("<|channel>thought\n", "<channel|>"),
    Thoughts("<ifm|think>", "</ifm|think>"),
    Thoughts("[THINK]", "[/THINK]"),
    Thoughts("◁think▷", "◁/think▷"),
    Thoughts("<mm:think>", "</mm:think>"),
    Thoughts("<|open|>think<|sep|>", "<|close|>think<|sep|>"),
    Thoughts("<think>", "</think>"),
)
