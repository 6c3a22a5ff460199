"""Models that answer many at once.

    engine = Engine(partial(ggufkit.load, "model.gguf"), context=8192, slots=4)
    how = sampling_of(engine.model.gguf, seed=1)
    stream = engine.submit(Request(tokens, max_tokens=64, sampling=how, stop=("\\n\\n",)))
    for event in stream:                            # or `async for`, in a running loop
        print(event.text, end="")                   # of each Token, and of the Finished at the end
    engine.embed([tokens, …]).result()              # a concurrent.futures.Future: (n, width), not normalised
    engine.close(drain=30)

    start = lambda path: Engine(partial(ggufkit.load, path), context=8192, slots=4)
    size = lambda path: ggufkit.fit(path, context=8192, slots=4).nbytes
    pool = ModelPool({"small": Path("small.gguf"), **models_in(folder)}, start, size, memory=8 << 30, idle=600)
    with pool.lease("small") as engine:             # loads it if need be; never unloaded while leased
        …

`request` is what goes in, `stream` what comes out, `engine` the door and the one thread that computes, `running` a
request that it works on, `schedule` which prompts it reads next, `prefixes` which caches begin like a prompt, `pool`
several models.
"""

from __future__ import annotations

from ggufkit.serve.engine.engine import Engine
from ggufkit.serve.engine.metrics import Metrics, Slot
from ggufkit.serve.engine.pool import ModelPool, models_in
from ggufkit.serve.engine.request import (
    Constraint,
    ContextTooLong,
    EngineClosed,
    Finished,
    QueueFull,
    Request,
    Token,
    Usage,
)
from ggufkit.serve.engine.stream import Stream

__all__ = [
    "Constraint",
    "ContextTooLong",
    "Engine",
    "EngineClosed",
    "Finished",
    "Metrics",
    "ModelPool",
    "QueueFull",
    "Request",
    "Slot",
    "Stream",
    "Token",
    "Usage",
    "models_in",
]
