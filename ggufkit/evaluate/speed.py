"""How fast a model runs: prompts and generation as llama-bench measures them, and what memory would allow.

Whoever generates one token reads all weights once, so memory bounds the speed:

    tokens/s ≤ bytes/s of a kernel that does nothing but read ÷ bytes of weights per token
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import mean, stdev

import numpy as np

from ggufkit.runtime.kv.cache import Cache
from ggufkit.runtime.model import Model

__all__ = ["Speed", "bytes_a_token", "measure_generation", "measure_prompt", "read_speed"]

_SAMPLE = 1 << 30  # bytes of weights that the read kernel reads at a time


@dataclass(frozen=True)
class Speed:
    """Repeated measurements of one test.

    Attributes
    ----------
    test : ``"pp512"`` for a prompt of 512 tokens, ``"tg128"`` for 128 generated ones, with ``" @ d256"`` after 256.
    rates : tokens a second of each repetition.
    """

    test: str
    rates: tuple[float, ...]

    @property
    def mean(self) -> float:
        return mean(self.rates)

    @property
    def deviation(self) -> float:
        """Standard deviation of the repetitions; 0 for one."""
        return stdev(self.rates) if len(self.rates) > 1 else 0.0


def measure_prompt(
    model: Model,
    tokens: int,
    depth: int = 0,
    repetitions: int = 5,
    types: tuple[str, str] = ("F16", "F16"),
    advance: Callable[[int, str], None] = lambda done, what: None,
) -> Speed:
    """Speed of a prompt of random tokens, of which the last one's logits are wanted, after `depth` others.

    Parameters
    ----------
    types : of keys and values in the cache.
    advance : called with tokens that are done and the name of the test.
    """
    name = _name("pp", tokens, depth)

    def run(cache: Cache, ids: np.ndarray) -> None:
        model.forward(ids, cache)
        advance(tokens, name)

    return Speed(name, tuple(_rates(model, tokens, depth, repetitions, types, run)))


def measure_generation(
    model: Model,
    tokens: int,
    depth: int = 0,
    repetitions: int = 5,
    types: tuple[str, str] = ("F16", "F16"),
    advance: Callable[[int, str], None] = lambda done, what: None,
) -> Speed:
    """Speed of tokens one after the other, with logits; random tokens, so sampling is not in it."""
    name = _name("tg", tokens, depth)

    def run(cache: Cache, ids: np.ndarray) -> None:
        for token in ids:
            model.forward([int(token)], cache)
            advance(1, name)

    return Speed(name, tuple(_rates(model, tokens, depth, repetitions, types, run)))


def _name(kind: str, tokens: int, depth: int) -> str:
    return f"{kind}{tokens}" + (f" @ d{depth}" if depth else "")


def _rates(
    model: Model,
    tokens: int,
    depth: int,
    repetitions: int,
    types: tuple[str, str],
    run: Callable[[Cache, np.ndarray], None],
) -> Iterator[float]:
    rng = np.random.default_rng(0)
    cache = model.new_cache(depth + tokens, *types)
    if depth:
        model.forward(rng.integers(0, model.vocabulary, depth), cache, logits=None)
    for _ in range(repetitions):
        cache.truncate(depth)
        ids = rng.integers(0, model.vocabulary, tokens)
        start = time.perf_counter()
        run(cache, ids)
        yield tokens / (time.perf_counter() - start)


# ---- Memory -----------------------------------------------------------------------------------------------------


def bytes_a_token(model: Model) -> int:
    """Bytes of weights that one token reads: all matrices but tables of rows, and of experts those that are used."""
    tables = {"position_embd.weight", "token_types.weight"}
    if "output.weight" in model.gguf.tensors:
        tables.add("token_embd.weight")
    total = 0.0
    for name, tensor in model.gguf.tensors.items():
        if len(tensor.shape) > 1 and name not in tables:
            chosen = model.expert_share if len(tensor.shape) > 2 else 1
            total += tensor.nbytes * chosen
    return int(total)


def read_speed(model: Model, threads: int | None = None) -> float:
    """Bytes a second at which as many threads can read the mapped weights if they do nothing else with them."""
    from ggufkit.runtime.cpu.bandwidth import read_all

    largest = sorted(model.gguf.tensors.values(), key=lambda tensor: -tensor.nbytes)
    chosen: list[np.ndarray] = []
    for tensor in largest:
        if sum(data.nbytes for data in chosen) < _SAMPLE:
            chosen.append(model.gguf.mapped(tensor.name).reshape(-1))
    read_all(chosen, threads)  # from the disk
    start = time.perf_counter()
    read_all(chosen, threads)
    return sum(data.nbytes for data in chosen) / (time.perf_counter() - start)
