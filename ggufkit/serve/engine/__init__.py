"""Models that answer many at once.

    engine = Engine(ggufkit.load("model.gguf"), context=8192, slots=4)
    stream = engine.submit(Request(tokens, max_tokens=64, sampling=sampling_of(model.gguf, seed=1), stop=("\\n\\n",)))
    for event in stream:                            # or `async for`, in a running loop
        print(event.text, end="")                   # of each Token, and of the Finished at the end
    engine.embed([tokens, …]).result()              # a concurrent.futures.Future: (n, width), not normalised
    engine.close(drain=30)

    pool = ModelPool({"small": Path("small.gguf"), …}, memory=8 << 30, idle=600, slots=4, …)
    with pool.lease("small") as engine:             # loads it if need be; never unloaded while leased
        …

`request` is what goes in and comes out, `engine` the door, `worker` the one thread that computes, `schedule` what it
computes next, `prefixes` which caches begin like a prompt, `pool` several models.
"""
