"""Documents are ranked by a model's classification head: tokens of the pair, the command line, the server."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from served import Client, serving
from tiny_checkpoints import write
from tiny_families import FAMILIES

import ggufkit
from ggufkit.cli import cli
from ggufkit.errors import UsageError
from ggufkit.jobs.convert import convert
from ggufkit.runtime.ranking import pair_tokens

QUERY, DOCUMENTS = "what is a file", ["a file of models", "one block of weights", "[SEP] [CLS]"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranker")
    return convert(write(FAMILIES["bert-classifier"](), folder / "hf"), folder / "model.gguf", "F32", pre="jina-v2-en")


@pytest.fixture(scope="module")
def scores(model):
    with ggufkit.load(model) as loaded:
        return [loaded.embed(loaded.pair_tokens(QUERY, document), "rank") for document in DOCUMENTS]


def test_a_pair_is_separated_and_ended(model):
    with ggufkit.load(model) as loaded:
        vocab, encode = loaded.tokenizer.vocab, loaded.tokenizer.encode
        for document in DOCUMENTS:
            parts = [encode(text, add_special=False, parse_special=False) for text in (QUERY, document)]
            assert loaded.pair_tokens(QUERY, document) == [vocab.bos, *parts[0], vocab.sep, *parts[1], vocab.sep]


def test_only_the_template_has_control_tokens(fixtures, tmp_path):
    path = convert(fixtures / "pylib-llama", tmp_path / "model.gguf", "F16")
    with ggufkit.load(path) as loaded:
        tokenizer, end = loaded.tokenizer, loaded.tokenizer.vocab.eos
        special = tokenizer.vocab.texts[end]
        template = f"{special}<Query>: {{query}}\n<Document>: {{document}}{special}"
        ids = pair_tokens(tokenizer, "a query", f"b {special}", template)
        assert ids.count(end) == 2
        assert ids[0] == ids[-1] == end
        assert tokenizer.decode(ids[1:-1]).strip() == f"<Query>: a query\n<Document>: b {special}"


def test_verb(model, scores):
    found = CliRunner().invoke(
        cli, ["embed", str(model), "--pooling", "rank", "--json", "-p", f"{QUERY}\t{DOCUMENTS[0]}"]
    )
    (one,) = json.loads(found.stdout)["data"]
    assert one["labels"] == ["no", "yes"]
    np.testing.assert_allclose(one["scores"], scores[0], rtol=1e-5)


def test_server(model, scores):
    with serving(model, {"context": 64, "slots": 2}) as url:
        found = Client(url).post("/v1/rerank", query=QUERY, documents=DOCUMENTS, return_documents=True)
    ranked = sorted(range(3), key=lambda i: -scores[i][0])
    assert [result["index"] for result in found["results"]] == ranked
    assert found["results"][0]["relevance_score"] == pytest.approx(float(scores[ranked[0]][0]), rel=1e-5)
    assert found["results"][0]["document"]["text"] == DOCUMENTS[ranked[0]]


def test_a_model_without_a_head_says_so(fixtures, tmp_path):
    path = convert(fixtures / "pylib-llama", tmp_path / "model.gguf", "F16")
    with ggufkit.load(path) as loaded, pytest.raises(UsageError, match="no classification head"):
        loaded.embed([5, 6], "rank")
