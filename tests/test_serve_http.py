"""What is on the wire: streams, errors in them, llama-server's own paths, and requests among others."""

from __future__ import annotations

import base64
import http.client
import json
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("llguidance")

from served import Client, chat_model, serving

import ggufkit

USER = [{"role": "user", "content": "def main("}]
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def model(fixtures, tmp_path_factory):
    ids = {"prefix": 5, "suffix": 6, "middle": 7}  # tokens that this tokenizer has no other use for
    metadata = {
        f"tokenizer.ggml.{key}_token_id": ggufkit.Value(ggufkit.ValueType.UINT32, ids[role])
        for role, key in (("prefix", "fim_pre"), ("suffix", "fim_suf"), ("middle", "fim_mid"))
    }
    return chat_model(fixtures, tmp_path_factory.mktemp("model"), **metadata)


@pytest.fixture(scope="module")
def client(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("caches")
    with serving(model, {"context": 1024, "slots": 8}, slots=True, metrics=True, slot_folder=folder, ping=0.1) as url:
        yield Client(url)


def text_of(events):
    return "".join(
        choice["delta"].get("content") or "" for _, data in events if data != "[DONE]" for choice in data["choices"]
    )


def test_chunks_of_a_chat(client):
    asked = {"messages": USER, "max_tokens": 5, "temperature": 0}
    events = client.events(CHAT, **asked, stream_options={"include_usage": True})
    assert events[0][1]["choices"][0]["delta"] == {"role": "assistant", "content": None}
    assert events[-1] == (None, "[DONE]")
    usage, last = events[-2][1], events[-3][1]
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 5
    assert last["choices"][0] == {"index": 0, "delta": {}, "finish_reason": "length"}
    assert last["timings"]["predicted_n"] == 5
    assert {event["id"] for _, event in events[:-1]} == {usage["id"]}
    whole = client.post(CHAT, **asked)
    assert text_of(events) == whole["choices"][0]["message"]["content"]
    assert whole["usage"]["prompt_tokens"] == usage["usage"]["prompt_tokens"]


def test_choices_are_apart_and_repeatable(client):
    asked = {"messages": USER, "max_tokens": 8, "temperature": 1.5, "seed": 5, "n": 3}
    whole = [choice["message"]["content"] for choice in client.post(CHAT, **asked)["choices"]]
    assert len(set(whole)) > 1
    found = ["", "", ""]
    for _, event in client.events(CHAT, **asked):
        for choice in event["choices"] if event != "[DONE]" else []:
            found[choice["index"]] += choice["delta"].get("content") or ""
    assert found == whole


def test_a_request_is_the_same_alone_and_among_others(client):
    """Check 2: the same tokens, whatever else runs, comes, goes or is cut off."""
    asked = [
        {
            "messages": [{"role": "user", "content": "x = 1\n" * (1 + 9 * i)}],
            "max_tokens": 6 + i,
            "seed": i,
            "temperature": 1,
        }
        for i in range(4)
    ]
    alone = [client.post(CHAT, **one)["choices"][0]["message"]["content"] for one in asked]
    together: dict[int, str] = {}

    def run(i: int) -> None:
        together[i] = client.post(CHAT, **asked[i % 4])["choices"][0]["message"]["content"]

    def leave(i: int) -> None:
        connection = http.client.HTTPConnection(client.host, client.port, timeout=30)
        body = {"prompt": "import os\n" * i, "n_predict": 500, "stream": True, "ignore_eos": True}
        connection.request("POST", "/completion", json.dumps(body))
        connection.getresponse().read(30)
        connection.close()

    threads = [threading.Thread(target=run, args=(i,)) for i in range(12)]
    threads += [threading.Thread(target=leave, args=(i,)) for i in range(1, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[i] for i in range(12)] == [alone[i % 4] for i in range(12)]


def wait_until(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def busy(client) -> int:
    return sum(slot["is_processing"] for slot in client.get("/slots"))


@pytest.mark.parametrize("stream", [True, False])
def test_work_ends_when_the_client_leaves(client, stream, capfd):
    wait_until(lambda: busy(client) == 0)
    body = {"prompt": "def", "n_predict": 1000, "stream": stream, "ignore_eos": True}
    for _ in range(4):
        connection = http.client.HTTPConnection(client.host, client.port, timeout=30)
        connection.request("POST", "/completion", json.dumps(body))
        wait_until(lambda: busy(client) == 1)
        connection.close()
        wait_until(lambda: busy(client) == 0)
    assert "ggufkit_requests_cancelled_total" in client.ask("GET", "/metrics")[2].decode()
    assert capfd.readouterr().err == ""


def test_silence_is_filled_with_pings(client, monkeypatch):
    from ggufkit.runtime.sampling import Sampler

    draw = Sampler.draw

    def slowly(*arguments):
        time.sleep(0.25)
        return draw(*arguments)

    monkeypatch.setattr(Sampler, "draw", slowly)
    for path, sign in ((CHAT, b": ping\n\n"), ("/v1/messages", b"event: ping\n")):
        assert sign in client.ask("POST", path, {"messages": USER, "max_tokens": 2, "stream": True})[2]


def test_an_error_on_the_way_is_a_frame(client, monkeypatch):
    from ggufkit.errors import GgufkitError
    from ggufkit.runtime.sampling import Sampler

    def fail(*_):
        raise GgufkitError("the weights are damaged")

    monkeypatch.setattr(Sampler, "draw", fail)
    assert client.events(CHAT, messages=USER)[-1][1]["error"]["message"] == "the weights are damaged"
    kind, data = client.events("/v1/messages", messages=USER, max_tokens=4)[-1]
    assert (kind, data["error"]["message"]) == ("error", "the weights are damaged")
    kind, data = client.events("/v1/responses", input="x")[-1]
    assert (kind, data["message"]) == ("error", "the weights are damaged")
    lines = client.ask("POST", "/api/chat", {"messages": USER})[2].decode().splitlines()
    assert json.loads(lines[-1]) == {"error": "the weights are damaged"}
    status, answer = client.fail(CHAT, messages=USER)
    assert (status, answer["error"]["type"]) == (500, "server_error")


def test_what_nobody_expected_tells_nothing(client, monkeypatch, capfd):
    def fail(*_, **__):
        raise KeyError("/secret/path")

    monkeypatch.setattr("ggufkit.serve.dialects.openai_chat.chat_of", fail)
    status, answer = client.fail(CHAT, messages=USER)
    assert status == 500
    assert "secret" not in json.dumps(answer)
    assert "secret" in capfd.readouterr().err


def test_completion_of_llama_server(client):
    asked = {"prompt": "import ", "n_predict": 6, "temperature": 0}
    whole = client.post("/completion", **asked, n_probs=2, return_tokens=True, stop=["\0"])
    assert whole["stop_type"] == "limit"
    assert whole["tokens_predicted"] == len(whole["tokens"]) == len(whole["completion_probabilities"]) == 6
    events = [data for _, data in client.events("/completion", **asked)]
    assert "".join(event["content"] for event in events) == whole["content"]
    assert [event["stop"] for event in events] == [False] * (len(events) - 1) + [True]
    stopped = client.post("/completion", **asked, stop=[whole["content"][2:4]])
    assert (stopped["stop_type"], stopped["content"]) == ("word", whole["content"][:2])
    assert client.post("/completion", **asked, response_fields=["content"]) == {"content": whole["content"]}
    ids = client.post("/tokenize", content="import ", add_special=True)["tokens"]
    assert client.post("/completion", prompt=ids, n_predict=6, temperature=0)["content"] == whole["content"]


def test_tokens_and_templates(client):
    ids = client.post("/tokenize", content="def ä()", with_pieces=True)["tokens"]
    assert {"id", "piece"} == set(ids[0])
    assert client.post("/detokenize", tokens=[one["id"] for one in ids])["content"].strip() == "def ä()"
    prompt = client.post("/apply-template", messages=USER)["prompt"]
    assert prompt == "<|im_start|>user\ndef main(<|im_end|>\n<|im_start|>assistant\n"
    props = client.get("/props")
    assert props["chat_format"] == "hermes"
    assert props["default_generation_settings"]["n_ctx"] == 1024


def test_infill(client, model):
    asked = {"input_prefix": "def f(", "input_suffix": "):\n    pass", "n_predict": 4, "temperature": 0}
    found = client.post("/infill", **asked, input_extra=[{"filename": "a.py", "text": "import os"}])
    assert found["tokens_predicted"] <= 4
    ids = found["prompt"]
    assert [ids.count(token) >= 1 for token in (5, 6, 7)] == [True] * 3
    assert ids.index(5) < ids.index(6) < ids.index(7)


def test_vectors(client):
    floats = client.post("/v1/embeddings", input=["import os", "x"])["data"]
    packed = client.post("/v1/embeddings", input=["import os", "x"], encoding_format="base64")["data"]
    for one, other in zip(floats, packed, strict=True):
        decoded = np.frombuffer(base64.b64decode(other["embedding"]), "<f4")
        assert np.array_equal(np.array(one["embedding"], np.float32), decoded)
    ids = client.post("/tokenize", content="import os", add_special=True)["tokens"]
    assert client.post("/v1/embeddings", input=ids)["data"][0]["embedding"] == floats[0]["embedding"]
    ranked = client.post("/v1/rerank", query="import os", documents=["def f(x):", "import os", "import sys"], top_n=2)
    assert ranked["results"][0]["index"] == 1
    assert ranked["results"][0]["relevance_score"] > 0.999
    assert len(ranked["results"]) == 2
    assert client.fail("/v1/embeddings", input=[])[0] == 400


def test_caches_are_saved_and_restored(client):
    client.post("/completion", prompt="import os\n" * 20, n_predict=2)
    assert client.post("/slots/0?action=save")["caches"] > 0
    client.post("/slots/0?action=erase")
    assert client.post("/slots/0?action=restore")["caches"] > 0
    known = client.post("/completion", prompt="import os\n" * 20 + "x", n_predict=2)["timings"]["cache_n"]
    assert known > 20
    assert (
        client.post("/completion", prompt="import os\n" * 20, n_predict=2, cache_prompt=False)["timings"]["cache_n"]
        == 0
    )
    assert client.fail("/slots/0?action=other")[0] == 400


def test_anthropics_blocks(client):
    tool = {
        "name": "look",
        "input_schema": {"type": "object", "properties": {"at": {"enum": ["sky"]}}, "required": ["at"]},
    }
    choice = {"type": "tool", "name": "look", "disable_parallel_tool_use": True}
    events = client.events("/v1/messages", messages=USER, max_tokens=200, tools=[tool], tool_choice=choice)
    kinds = [kind for kind, _ in events if kind != "ping"]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    pieces = [data["delta"]["partial_json"] for kind, data in events if kind == "content_block_delta"]
    assert json.loads("".join(pieces)) == {"at": "sky"}
    assert next(data for kind, data in events if kind == "message_delta")["delta"]["stop_reason"] == "tool_use"


def test_the_answer_goes_on_where_it_was_begun(client):
    begun = [*USER, {"role": "assistant", "content": "self, x"}]
    asked = {"messages": begun, "max_tokens": 1}
    counted = client.post(CHAT, **asked, continue_final_message=True)["usage"]["prompt_tokens"]
    prompt = client.post("/apply-template", messages=USER)["prompt"] + "self, x"
    assert counted == len(client.post("/tokenize", content=prompt, add_special=True)["tokens"])


@pytest.mark.parametrize(
    ("form", "check"),
    [
        ({"response_format": {"type": "json_object"}}, lambda text: isinstance(json.loads(text), dict)),
        ({"response_format": {"type": "regex", "pattern": "[0-9]{3}"}}, lambda text: text.isdigit() and len(text) == 3),
        ({"grammar": 'root ::= "yes" | "no"'}, lambda text: text in ("yes", "no")),
        ({"response_format": {"type": "grammar", "grammar": 'start: "a" "b"+'}}, lambda text: text.strip("b") == "a"),
        ({"json_schema": {"const": [1, "x"]}}, lambda text: json.loads(text) == [1, "x"]),
    ],
)
def test_text_obeys(client, form, check):
    for seed in range(3):
        choice = client.post(CHAT, messages=USER, max_tokens=60, seed=seed, **form)["choices"][0]
        assert choice["finish_reason"] == "length" or check(choice["message"]["content"])


def test_two_things_to_obey_are_one_too_many(client):
    status, answer = client.fail(CHAT, messages=USER, grammar="root ::= [a]", json_schema={})
    assert (status, answer["error"]["type"]) == (400, "invalid_request_error")


def test_unknown_paths_and_methods(client):
    assert client.fail("/v1/nothing")[0] == 404
    assert client.ask("GET", CHAT)[0] == 405
    assert client.fail("/api/nothing") == (404, {"error": "there is nothing at this path"})
    assert client.fail("/v1/messages/nothing")[1]["error"]["type"] == "not_found_error"


def test_mlx_answers_as_the_cpu_does(client, model):
    pytest.importorskip("mlx.core")
    asked = {"messages": USER, "max_tokens": 6, "temperature": 0}
    expected = client.post(CHAT, **asked)["choices"][0]["message"]["content"]
    with serving(model, {"context": 256}, backend="mlx") as url:
        found = Client(url)
        assert found.post(CHAT, **asked)["choices"][0]["message"]["content"] == expected
        assert text_of(found.events(CHAT, **asked)) == expected
        assert json.loads(
            found.post(CHAT, messages=USER, json_schema={"const": [1]})["choices"][0]["message"]["content"]
        ) == [1]
        assert len(found.post("/v1/embeddings", input="x")["data"]) == 1


def test_a_template_without_tools_is_told_of_them(model):
    plain = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
    tool = {
        "type": "function",
        "function": {"name": "look", "parameters": {"type": "object", "properties": {"at": {}}}},
    }
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"at": "sky"}'}}
    messages = [
        *USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "blue"},
        {"role": "tool", "tool_call_id": "2", "content": "grey"},
    ]
    with serving(model, {"context": 1024}, template=plain) as url:
        prompt = Client(url).post("/apply-template", messages=messages, tools=[tool])["prompt"]
    told, rest = prompt.split("[user]", 1)
    assert "look" in told
    assert "<tool_call>" in told
    assert rest == (
        'def main([assistant]<tool_call>\n{"name": "look", "arguments": {"at": "sky"}}\n</tool_call>'
        "[user]<tool_response>\nblue\n</tool_response>\n<tool_response>\ngrey\n</tool_response>[assistant]"
    )


def test_the_verb_ends_when_answers_have_gone_out(model, tmp_path):
    keys = tmp_path / "keys.txt"
    keys.write_text("# who\na-key-of-some-length\n")
    command = [sys.executable, "-m", "ggufkit", "serve", f"my={model}", "--port", "0", "--api-key-file", str(keys)]
    running = subprocess.Popen([*command, "--backend", "cpu", "-c", "512"], stderr=subprocess.PIPE, text=True)
    try:
        line = next(line for line in running.stderr if "http://" in line)
        found = Client(re.search(r"http://[0-9.:]+", line)[0])
        key = {"Authorization": "Bearer a-key-of-some-length"}
        assert found.ask("GET", "/v1/models")[0] == 401
        assert b'"my"' in found.ask("GET", "/v1/models", headers=key)[2]
        connection = http.client.HTTPConnection(found.host, found.port, timeout=30)
        body = {"prompt": "def", "n_predict": 100, "stream": True, "ignore_eos": True}
        connection.request("POST", "/completion", json.dumps(body), key)
        answer = connection.getresponse()
        answer.read(10)
        running.send_signal(signal.SIGTERM)
        assert b'"stop_type":"limit"' in answer.read()  # it came to its end
        assert running.wait(20) == 0
    finally:
        running.kill()
        running.communicate()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "0.0.0.0"], "no key; give one with --api-key-file"),
        (["--api-key-file", "nothing.txt"], "does not exist"),
        (["again=chat.gguf", "again=chat.gguf"], "two models are called again"),
        (["--port", "1", "--host", "203.0.113.1", "--api-key-file", "KEYS"], "cannot listen on 203.0.113.1:1"),
    ],
)
def test_the_verb_refuses_in_one_line(model, options, message, tmp_path, capsys):
    from ggufkit.cli import main

    (tmp_path / "keys").write_text("a-key-of-some-length")
    with pytest.raises(SystemExit) as e:
        main(["serve", str(model), *(str(tmp_path / "keys") if option == "KEYS" else option for option in options)])
    assert e.value.code in (1, 2)
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_logprobs_of_a_prompt(client, model):
    """What harnesses ask for: echo with logprobs, and vLLM's prompt_logprobs."""
    text = "import os\nimport sys\n"
    asked = {"prompt": text, "max_tokens": 3, "temperature": 0, "logprobs": 2}
    alone = client.post("/v1/completions", **asked)["choices"][0]
    choice = client.post("/v1/completions", **asked, echo=True, prompt_logprobs=1)["choices"][0]
    assert choice["text"] == text + alone["text"]
    told = choice["logprobs"]
    with ggufkit.load(model, backend="cpu") as loaded:
        ids = loaded.tokenizer.encode(text)
        logits = loaded.step([ggufkit.runtime.batch.Piece(loaded.new_cache(64), ids, "all")])[0].astype(np.float64)
    values = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = [values[i, id] for i, id in enumerate(ids[1:])]
    assert told["token_logprobs"][0] is told["top_logprobs"][0] is None
    np.testing.assert_allclose(told["token_logprobs"][1 : len(ids)], expected, rtol=1e-5)
    np.testing.assert_allclose(told["token_logprobs"][len(ids) :], alone["logprobs"]["token_logprobs"], rtol=1e-5)
    assert all(1 <= len(top) <= 2 for top in told["top_logprobs"][1:])  # tokens of the same text are one
    assert len(told["tokens"]) == len(told["text_offset"]) == len(ids) + 3
    assert told["text_offset"][len(ids)] == len(text)
    first = choice["prompt_logprobs"]
    assert first[0] is None
    for i, (entry, id) in enumerate(zip(first[1:], ids[1:], strict=True)):
        assert entry[str(id)]["rank"] == 1 + (values[i] > values[i, id]).sum()
        assert {one["rank"] for one in entry.values()} >= {1}
    scored = client.post("/v1/completions", **{**asked, "max_tokens": 0}, echo=True)["choices"][0]
    assert (scored["text"], scored["logprobs"]["token_logprobs"]) == (text, told["token_logprobs"][: len(ids)])
    events = client.events("/v1/completions", **asked, echo=True)
    streamed = [data["choices"][0]["logprobs"] for _, data in events[:-1] if data["choices"][0]["logprobs"]]
    assert [value for part in streamed for value in part["token_logprobs"]] == told["token_logprobs"]
    assert [offset for part in streamed for offset in part["text_offset"]] == told["text_offset"]


def test_logprobs_of_long_prompts_come_in_pieces(client):
    prompt = [5 + i % 90 for i in range(300)]
    whole = client.post("/v1/completions", prompt=prompt, max_tokens=1, temperature=0, prompt_logprobs=0, logprobs=0)
    again = client.post("/v1/completions", prompt=prompt[:299], max_tokens=0, prompt_logprobs=0)
    assert len(whole["choices"][0]["prompt_logprobs"]) == 300
    assert whole["choices"][0]["prompt_logprobs"][:299] == again["choices"][0]["prompt_logprobs"]
    assert whole["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    chat = client.post(CHAT, messages=USER, max_tokens=1, prompt_logprobs=0)
    assert len(chat["prompt_logprobs"]) == chat["usage"]["prompt_tokens"]
