"""Chat templates, as transformers renders them, and in a sandbox."""

from __future__ import annotations

import re
import subprocess
import sys
import time

import pytest
import vocab_texts

import ggufkit
from ggufkit.errors import GGUFError, UsageError
from ggufkit.runtime.chat import ChatTemplate, read_template, template_names
from ggufkit.tokenizer.run.vocab import read_vocab

USER = [{"role": "user", "content": "Hello"}]
CHATML = """{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""


def test_chatml():
    template = ChatTemplate(CHATML)
    assert template.render(USER) == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert template.render(USER, add_generation_prompt=False) == "<|im_start|>user\nHello<|im_end|>\n"


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}", "<s>Hello</s>"),
        ("{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}x{% endfor %}y", "y"),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{% generation %}{{ messages[0]['content'] }}{% endgeneration %}!", "Hello!"),
        ("{{ {'a': '<é>', 'b': [1]} | tojson }}", '{"a": "<é>", "b": [1]}'),
        ("{{ {'b': 1, 'a': 2} | tojson(indent=2, sort_keys=true) }}", '{\n  "a": 2,\n  "b": 1\n}'),
        ("{%- set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "1"),
        ("  {% if true %}\n  a\n  {% endif %}\nb", "  a\nb"),
        ("{{ tools is none }}{{ documents is none }}{{ nothing is defined }}", "TrueTrueFalse"),
        ("{{ messages[0].content.split('l') | join('-') }}{{ 'x'.strip() }}", "He--ox"),
    ],
)
def test_template_gets_what_transformers_gives(source, text):
    template = ChatTemplate(source, tokens={"bos_token": "<s>", "eos_token": "</s>"})
    assert template.render(USER) == text


def test_template_gets_more_variables():
    template = ChatTemplate("{{ enable_thinking }}{{ tools[0].name }}")
    assert template.render(USER, enable_thinking=False, tools=[{"name": "f"}]) == "Falsef"


def test_strftime_now_is_the_date():
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", ChatTemplate("{{ strftime_now('%Y-%m-%d') }}").render(USER))


def test_template_that_refuses_says_why():
    template = ChatTemplate("{{ raise_exception('Only\nuser roles!') }}", "m.gguf")
    with pytest.raises(UsageError, match=r"chat template refuses this conversation: Only\\nuser roles!"):
        template.render(USER)


@pytest.mark.parametrize(
    "source", ["{% for %}", "{{ messages", "{% nonsense %}", "{% if a %}x", "{{ 'a' | nofilter }}"]
)
def test_broken_template_says_the_line(source):
    with pytest.raises(GGUFError, match=r"m.gguf: the chat template .* is broken, line 2: "):
        ChatTemplate("{# first #}\n" + source, "m.gguf")


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[7].content }}",
        "{{ none.x.y }}",
        "{{ 1 / 0 }}",
        "{{ messages + 1 }}",
        "{{ [].append.__self__.__class__ }}{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{% for i in range(10**9) %}x{% endfor %}",
        "{% include 'other' %}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    ],
)
def test_template_that_fails_or_breaks_out_is_one_line(source):
    with pytest.raises(GGUFError, match=r"m.gguf: the chat template .* failed: ") as e:
        ChatTemplate(source, "m.gguf").render(USER)
    assert "\n" not in str(e.value)


def test_template_cannot_change_the_conversation():
    messages = [{"role": "user", "content": "a"}]
    with pytest.raises(GGUFError):
        ChatTemplate("{{ messages[0].update({'content': 'b'}) }}").render(messages)
    assert messages == [{"role": "user", "content": "a"}]


@pytest.fixture
def model(tmp_path):
    """A file with a default template and a named one."""
    tokens = {"<unk>": 2, "<s>": 3, "</s>": 3, "a": 1}
    path = vocab_texts.write_vocab(tmp_path / "v.gguf", "llama", tokens)
    templates = {"tokenizer.chat_template": "{{ bos_token }}default", "tokenizer.chat_template.tool_use": "tools"}
    with ggufkit.open(path) as source, ggufkit.Writer(tmp_path / "m.gguf", {**source.fields, **templates}, []):
        pass
    with ggufkit.open(tmp_path / "m.gguf") as opened:
        yield opened


def test_templates_of_a_file(model):
    vocab = read_vocab(model)
    assert read_template(model, vocab).render(USER) == "<s>default"
    assert read_template(model, vocab, "tool_use").render(USER) == "tools"
    assert template_names(model) == ["tool_use"]
    with pytest.raises(GGUFError, match="there is no chat template named rag; it has tool_use"):
        read_template(model, vocab, "rag")


def test_file_without_a_template_says_what_to_do(tmp_path):
    path = vocab_texts.write_vocab(tmp_path / "v.gguf", "llama", {"<unk>": 2, "<s>": 3, "</s>": 3, "a": 1})
    with ggufkit.open(path) as model, pytest.raises(GGUFError, match=r"no chat template .*template=…"):
        read_template(model, read_vocab(model))


@pytest.mark.parametrize("name", ["qwen2", "phi-3"])
def test_templates_of_real_models_render(shared, name):
    with ggufkit.open(shared / "vocab" / f"ggml-vocab-{name}.gguf") as model:
        if "tokenizer.chat_template" not in model.fields:
            pytest.skip("the vocabulary has no chat template")
        text = read_template(model, read_vocab(model)).render(USER)
    assert "Hello" in text
    assert text.rstrip("\n").endswith(("assistant", "<|assistant|>"))


# ---- programs of strangers ----------------------------------------------------------------------------------------

BOMBS = {
    "a long text": "{% set x = 'a' * (10**9) %}{{ x }}{{ x }}",
    "a constant": "{{ 'a' * 10**9 }}",
    "a list": "{{ [1] * 10**9 }}",
    "a number": "{{ 10**(10**9) }}",
    "a shift of a number": "{% set x = 2**62 %}{% for i in range(64) %}{% set x = x * x %}{{ x ** x }}{% endfor %}",
    "indent": "{{ ('a\n' * 1000) | indent(10**8) }}",
    "center": "{{ 'a' | center(10**10) }}",
    "nested ranges": "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}x{% endfor %}"
    "{% endfor %}{% endfor %}",
    "silent nested ranges": "{% for a in range(99999) %}{% for b in range(99999) %}{% set c = a * b %}"
    "{% endfor %}{% endfor %}",
    "25 blocks": "{% for a in [1] %}" * 25 + "{% endfor %}" * 25,
    "a thousand blocks": "{% if a %}" * 1000 + "{% endif %}" * 1000,
    "a thousand brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "a thousand signs": "{{ " + "-" * 50_000 + "1 }}",
    "a macro of itself": "{% macro f(n) %}{{ f(n + 1) }}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "format": "{{ '%1000000000d' | format(1) }}",
    "format by name": "{{ '{:>1000000000}'.format(1) }}",
    "doubling": "{% set ns = namespace(x='ab') %}{% for i in range(64) %}{% set ns.x = ns.x + ns.x %}{% endfor %}"
    "{{ ns.x }}",
    "replace": "{{ ('a' * 100000) | replace('a', 'b' * 100000) }}",
    "batch": "{{ range(99999) | batch(1, 0) | list | string | length }}" * 100,
    "join": "{{ (['a' * 10**6] * 10**4) | join(',') | length }}",
    "product": "{% for a in messages %}{% for i in range(99999) %}{{ messages | tojson }}{% endfor %}{% endfor %}",
}


MEMORY = ["a long text", "a constant", "a list", "indent", "center", "format", "doubling", "join", "replace"]


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_of_a_template_ends_in_one_line(name):
    seconds, start = time.process_time(), time.monotonic()
    with pytest.raises(GGUFError) as error:
        ChatTemplate(BOMBS[name], "m.gguf").render([{"role": "user", "content": "a" * 10_000}])
    assert len(str(error.value).splitlines()) == 1
    assert time.process_time() - seconds < 0.5  # here; the template's process has a second of its own
    assert time.monotonic() - start < 20  # of a busy machine
    # And the next one runs.
    assert ChatTemplate(CHATML).render(USER).startswith("<|im_start|>user")


def test_a_bomb_takes_little_memory(tmp_path):
    code = f"""
import resource
from ggufkit.runtime.chat import ChatTemplate
from ggufkit.sandbox import jinja
for source in {[BOMBS[name] for name in MEMORY]!r}:
    try:
        ChatTemplate(source).render([{{"role": "user", "content": "x"}}])
    except Exception as e:
        assert type(e).__name__ == "GGUFError", e
jinja._process.end()
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
    peak = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert peak < 200_000  # KB


@pytest.mark.parametrize("name", ["a long text", "25 blocks", "a thousand brackets", "a constant"])
def test_a_bomb_of_a_template_in_a_file(name, tmp_path):
    path = vocab_texts.write_vocab(tmp_path / "v.gguf", "llama", {"<unk>": 2, "<s>": 3, "</s>": 3, "a": 1})
    with (
        ggufkit.open(path) as source,
        ggufkit.Writer(tmp_path / "m.gguf", {**source.fields, "tokenizer.chat_template": BOMBS[name]}, []),
    ):
        pass
    start = time.process_time()
    for finding in ggufkit.validate(tmp_path / "m.gguf"):
        assert len(str(finding).splitlines()) == 1
    assert time.process_time() - start < 1


PARTS = (
    "{% for message in messages %}{{ message['role'] | capitalize }}: {% for line in message['content'] %}"
    "{% if line['type'] == 'text' %}{{ line['text'] }}{% endif %}{% endfor %}\n{% endfor %}"
)
SAYS = {
    "text": (CHATML, "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"),
    "parts only": (PARTS, "User: Hello"),
    "parts that fail with a text": ("{{ messages[0].content[0].text.strip() }}", "Hello"),
    "either": (
        "{% set c = messages[0].content %}{% if c is string %}{{ c }}{% else %}{{ c[0].text }}!{% endif %}",
        "Hello",
    ),
    "as JSON": ("{{ messages[0].content | tojson }}", '"Hello"'),
    "in capitals": ("{{ messages[0].content | upper }}", "HELLO"),
    "in lists": ("{{ messages[0].content | list | join('') }}", "Hello"),
    "trimmed": ("{{ messages[0].content | trim }}", "Hello"),
    "parts in a macro": (
        "{% macro say(c) %}{% for p in c if p.type == 'text' %}[{{ p.text }}]{% endfor %}{% endmacro %}"
        "{{ say(messages[0].content) }}",
        "[Hello]",
    ),
    "mapping alone": (
        "{% for p in messages[0].content %}{% if p is mapping %}{{ p.text }}{% endif %}{% endfor %}",
        "Hello",
    ),
}


@pytest.mark.parametrize("name", SAYS)
def test_what_the_user_says_is_in_the_prompt(name):
    source, text = SAYS[name]
    assert ChatTemplate(source).prompt(USER) == text


def test_what_is_escaped_on_its_way_counts():
    said = [{"role": "user", "content": 'a "b"\n<c>'}]
    assert ChatTemplate("{{ messages[0].content | tojson }}").prompt(said) == '"a \\"b\\"\\n<c>"'
    assert ChatTemplate("{{ messages[0].content | e }}").prompt(said) == "a &#34;b&#34;\n&lt;c&gt;"


@pytest.mark.parametrize(
    "source", ["", "{{ bos_token }}", "{{ messages[0].text }}", "{% for m in messages %}x{% endfor %}"]
)
def test_a_template_that_leaves_out_the_message_is_refused(source):
    with pytest.raises(UsageError, match="leaves out"):
        ChatTemplate(source).prompt(USER)
