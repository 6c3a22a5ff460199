"""The server as its clients see it: the libraries that people use, against the bundled model."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("llguidance")

from served import chat_model, serving

USER = [{"role": "user", "content": "def main("}]
LOOK = {
    "name": "look",
    "description": "Look somewhere.",
    "parameters": {
        "type": "object",
        "properties": {"at": {"enum": ["sky", "sea"]}, "far": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["at"],
    },
}
PERSON = {
    "type": "object",
    "properties": {"name": {"enum": ["Ada", "Bob"]}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
LONG = "x = 1\n" * 3000


@pytest.fixture(scope="module")
def url(fixtures, tmp_path_factory):
    with serving(chat_model(fixtures, tmp_path_factory.mktemp("model")), {"context": 2048}) as url:
        yield url


@pytest.fixture(scope="module")
def openai(url):
    return pytest.importorskip("openai").OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def test_openai_chat(openai):
    answer = openai.chat.completions.create(model="tiny", messages=USER, max_completion_tokens=8, temperature=0, seed=1)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 8
    chunks = list(
        openai.chat.completions.create(
            model="tiny",
            messages=USER,
            max_tokens=8,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == answer.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == 8
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens > 0


def test_openai_choices_logprobs_and_bias(openai):
    answer = openai.chat.completions.create(
        model="tiny", messages=USER, max_tokens=3, n=2, seed=7, logprobs=True, top_logprobs=2, temperature=2
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.usage.completion_tokens == 6
    tokens = answer.choices[0].logprobs.content
    assert (
        b"".join(bytes(token.bytes) for token in tokens).decode("utf-8", "replace") == answer.choices[0].message.content
    )
    assert all(token.top_logprobs[0].logprob >= token.top_logprobs[1].logprob for token in tokens)
    forced = openai.chat.completions.create(
        model="tiny", messages=USER, max_tokens=2, temperature=0, logit_bias={"260": 100}, logprobs=True
    )
    assert len({token.token for token in forced.choices[0].logprobs.content}) == 1


def test_openai_calls_tools_in_a_loop(openai):
    asked = {"model": "tiny", "tools": [{"type": "function", "function": LOOK}], "seed": 1, "max_tokens": 200}
    asked["parallel_tool_calls"] = False
    messages = list(USER)
    for stream in (False, True):
        if stream:
            parts = openai.chat.completions.create(messages=messages, tool_choice="required", stream=True, **asked)
            calls, reason = {}, None
            for chunk in parts:
                for call in chunk.choices[0].delta.tool_calls or []:
                    known = calls.setdefault(call.index, {"id": call.id, "name": call.function.name, "arguments": ""})
                    known["arguments"] += call.function.arguments or ""
                reason = chunk.choices[0].finish_reason or reason
            call = calls[0]
        else:
            choice = {"type": "function", "function": {"name": "look"}}
            answer = openai.chat.completions.create(messages=messages, tool_choice=choice, **asked)
            reason = answer.choices[0].finish_reason
            made = answer.choices[0].message.tool_calls[0]
            call = {"id": made.id, "name": made.function.name, "arguments": made.function.arguments}
        assert reason == "tool_calls"
        assert call["name"] == "look"
        arguments = json.loads(call["arguments"])
        assert arguments["at"] in ("sky", "sea")
        function = {"name": "look", "arguments": call["arguments"]}
        made = {"id": call["id"], "type": "function", "function": function}
        messages.append({"role": "assistant", "content": None, "tool_calls": [made]})
        messages.append({"role": "tool", "tool_call_id": call["id"], "content": "It is blue."})
    answer = openai.chat.completions.create(messages=messages, **{**asked, "max_tokens": 4})
    assert answer.choices[0].message.content is not None


def test_openai_structured_output(openai):
    pydantic = pytest.importorskip("pydantic")

    class Person(pydantic.BaseModel):
        name: str = pydantic.Field(max_length=4)
        age: int = pydantic.Field(ge=0, le=99)

    answer = openai.chat.completions.parse(model="tiny", messages=USER, response_format=Person, max_tokens=200, seed=3)
    assert isinstance(answer.choices[0].message.parsed, Person)


def test_openai_completions(openai):
    how = {"model": "tiny", "max_tokens": 4, "temperature": 0}
    answer = openai.completions.create(prompt=["import ", "def "], logprobs=1, **how)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert len(answer.choices[1].logprobs.tokens) == 4
    echoed = openai.completions.create(model="tiny", prompt="import ", max_tokens=2, temperature=0, echo=True)
    assert echoed.choices[0].text.startswith("import ")
    chunks = list(openai.completions.create(prompt="import ", stream=True, **how))
    assert "".join(chunk.choices[0].text for chunk in chunks) == answer.choices[0].text


def test_openai_embeddings(openai):
    floats = openai.embeddings.create(model="tiny", input=["import os", "def f():"], encoding_format="float")
    packed = openai.embeddings.create(model="tiny", input=["import os", "def f():"])  # base64 on the wire
    for a, b in zip(floats.data, packed.data, strict=True):
        assert max(abs(x - y) for x, y in zip(a.embedding, b.embedding, strict=True)) < 1e-6
    assert abs(sum(x * x for x in floats.data[0].embedding) - 1) < 1e-5


def test_openai_responses(openai):
    answer = openai.responses.create(model="tiny", input="def main(", max_output_tokens=8, temperature=0)
    assert answer.status == "incomplete"
    assert answer.usage.output_tokens == 8
    with openai.responses.stream(model="tiny", input="def main(", max_output_tokens=8, temperature=0) as stream:
        events = list(stream)
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == answer.output_text
    tool = {"type": "function", "strict": False, **LOOK}
    called = openai.responses.create(model="tiny", input="def main(", tools=[tool], tool_choice="required")
    [call] = [item for item in called.output if item.type == "function_call"][:1]
    assert json.loads(call.arguments)["at"] in ("sky", "sea")
    items = [*called.output, {"type": "function_call_output", "call_id": call.call_id, "output": "blue"}]
    again = openai.responses.create(model="tiny", input=[{"role": "user", "content": "x"}, *items], max_output_tokens=4)
    assert again.output_text is not None
    form = {"format": {"type": "json_schema", "name": "person", "schema": PERSON}}
    made = openai.responses.create(model="tiny", input="A person", text=form)
    assert json.loads(made.output_text)["name"] in ("Ada", "Bob")


def test_openai_errors(openai):
    errors = pytest.importorskip("openai")
    with pytest.raises(errors.BadRequestError) as e:
        openai.chat.completions.create(model="tiny", messages=[{"role": "user", "content": LONG}])
    assert e.value.code == "context_length_exceeded"
    assert "exceeds the available context size" in e.value.message
    assert "context length" in e.value.message
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"properties": {"a": {"type": "strin"}}}}}
    with pytest.raises(errors.BadRequestError, match="#/properties/a"):
        openai.chat.completions.create(model="tiny", messages=USER, response_format=form)
    assert [model.id for model in openai.models.list()] == ["tiny"]
    with pytest.raises(errors.NotFoundError):
        openai.models.retrieve("nothing")


def test_anthropic(url):
    anthropic = pytest.importorskip("anthropic")
    client = anthropic.Anthropic(base_url=url, api_key="none", max_retries=0)
    how = {"model": "tiny", "max_tokens": 8, "system": "# code", "extra_body": {"temperature": 0}}
    answer = client.messages.create(messages=USER, **how)
    assert answer.stop_reason == "max_tokens"
    assert answer.usage.output_tokens == 8
    with client.messages.stream(messages=USER, **how) as stream:
        assert "".join(stream.text_stream) == answer.content[0].text
        assert stream.get_final_message().usage.cache_read_input_tokens > 0
    assert client.messages.count_tokens(model="tiny", messages=USER).input_tokens > 4
    tool = {"name": "look", "description": "Look.", "input_schema": LOOK["parameters"]}
    messages = list(USER)
    with client.messages.stream(
        model="tiny",
        max_tokens=200,
        messages=messages,
        tools=[tool],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
    ) as stream:
        called = stream.get_final_message()
    assert called.stop_reason == "tool_use"
    call = next(block for block in called.content if block.type == "tool_use")
    assert call.input["at"] in ("sky", "sea")
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "blue"}]}
    messages += [{"role": "assistant", "content": called.content}, {"role": "user", "content": [result]}]
    again = client.messages.create(model="tiny", max_tokens=4, messages=messages, tools=[tool])
    assert again.content
    with pytest.raises(anthropic.BadRequestError, match="prompt is too long"):
        client.messages.create(model="tiny", max_tokens=4, messages=[{"role": "user", "content": LONG}])


def test_ollama(url):
    ollama = pytest.importorskip("ollama")
    client = ollama.Client(host=url)
    options = {"num_predict": 6, "temperature": 0}
    answer = client.chat(model="tiny", messages=USER, options=options)
    assert answer.eval_count == 6
    parts = list(client.chat(model="tiny", messages=USER, options=options, stream=True))
    assert "".join(part.message.content for part in parts) == answer.message.content
    assert parts[-1].done_reason == "length"
    raw = client.generate(model="tiny", prompt="import ", options=options, raw=True)
    assert raw.response
    made = client.chat(model="tiny", messages=USER, format=PERSON, options={"num_predict": 200})
    assert json.loads(made.message.content)["name"] in ("Ada", "Bob")
    assert len(client.embed(model="tiny", input=["a", "b"]).embeddings) == 2
    assert [model.model for model in client.list().models] == ["tiny"]
    assert "tools" in client.show("tiny").capabilities
    with pytest.raises(ollama.ResponseError, match="context"):
        client.chat(model="tiny", messages=[{"role": "user", "content": LONG}])


def test_llm(url, tmp_path):
    pytest.importorskip("llm")
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: tiny\n  model_name: tiny\n  api_base: {url}/v1\n  api_key_name: none\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "llm", "-m", "tiny", "--key", "none", "-o", "max_tokens", "6", "def main("],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "LLM_USER_PATH": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_langchain(url):
    langchain = pytest.importorskip("langchain_openai")
    model = langchain.ChatOpenAI(
        base_url=f"{url}/v1", api_key="none", model="tiny", max_tokens=200, max_retries=0, seed=1
    )
    assert model.invoke("def main(", max_tokens=4).usage_metadata["output_tokens"] == 4
    assert "".join(chunk.content for chunk in model.stream("def main(", max_tokens=4))
    bound = model.bind_tools([{"type": "function", "function": LOOK}], tool_choice="required")
    [call, *_] = bound.invoke("look").tool_calls
    assert call["args"]["at"] in ("sky", "sea")
    structured = model.with_structured_output({"title": "person", "description": "one", **PERSON}, method="json_schema")
    assert structured.invoke("A person")["name"] in ("Ada", "Bob")
