#!/usr/bin/env python3
"""What is compared between this machine and an emulated arm64: each job prints a line that must be the same on both.

python tools/verify/arm64/jobs.py list
python tools/verify/arm64/jobs.py encode:Q4_K weighted:Q4_K decode:Q4_K products convert:Q8_0 run:Q8_0
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[3]


def values(rows: int, cols: int):
    """Weights that no machine rounds: integers, cubed, by powers of two; zeros and a constant block among them."""
    import numpy as np

    integers = np.random.default_rng(0).integers(-1000, 1001, (rows, cols))
    x = (integers.astype(np.float64) ** 3 / 2**30).astype(np.float32)
    x[0, :32], x[1, :256] = 0, 0.25
    return x


def sha(data) -> str:
    import numpy as np

    data = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else data
    return hashlib.sha256(np.ascontiguousarray(data).tobytes()).hexdigest()[:16]


def encode(name: str, weighted: bool = False):
    import numpy as np

    from ggufkit.formats.codec import encode as encode_rows

    importance = (np.random.default_rng(1).integers(1, 1000, 512) / 256).astype(np.float32) if weighted else None
    return encode_rows(values(50, 512), name, importance)


def decode(name: str) -> str:
    """Of random bytes in which every float16 is finite, or nearly all; NaNs are made one."""
    import numpy as np

    from ggufkit.formats.codec import decode as decode_rows
    from ggufkit.formats.table import format_by_name

    format = format_by_name(name)
    size = 512 // format.block_size * format.type_size
    blocks = np.random.default_rng(2).integers(0, 256, (50, size), np.uint8) & 0xBF
    blocks.flags.writeable = False
    floats = decode_rows(blocks, name)
    floats[np.isnan(floats)] = np.nan
    return sha(floats)


def products(_: str = "") -> str:
    """The program of the test that all bodies of a CPU give the same sums."""
    import contextlib
    import io
    import runpy

    sys.path.insert(0, str(ROOT / "tests"))
    import test_kernels_cpu

    out = io.StringIO()
    with tempfile.NamedTemporaryFile("w", suffix=".py") as file, contextlib.redirect_stdout(out):
        file.write(test_kernels_cpu.PROGRAM)
        file.flush()
        runpy.run_path(file.name)
    return hashlib.sha256(out.getvalue().encode()).hexdigest()[:16]


def convert(type_: str, folder: Path, without: tuple[int, ...] = ()) -> Path:
    """The bundled model, `without` some of its four layers."""
    from dataclasses import replace

    from ggufkit.jobs.convert import convert as convert_checkpoint
    from ggufkit.policy.recipe import recipe_of

    recipe = replace(recipe_of(type_), prune_layers=without) if without else type_
    return convert_checkpoint(ROOT / "fixtures" / "pylib-llama", folder / "model.gguf", recipe)


def run(type_: str, folder: Path) -> str:
    """Forty greedy tokens after a prompt and a few tokens at once, and the bits of all scores."""
    import numpy as np

    from ggufkit.runtime.model import load

    with load(convert(type_, folder), backend="cpu", threads=1) as model:
        cache, made = model.new_cache(128), []
        scores = [model.forward([1, *range(20, 4000, 120)], cache), model.forward([300, 5, 77], cache)]
        for _ in range(40):
            made.append(int(scores[-1].reshape(-1, scores[-1].shape[-1])[-1].argmax()))
            scores.append(model.forward([made[-1]], cache))
    return f"{sha(np.concatenate([x.reshape(-1) for x in scores]))} {' '.join(map(str, made))}"


def gptq(type_: str, folder: Path) -> str:
    """Statistics of a layer of the bundled model from a few lines of text, and the file that GPTQ makes with them.

    It is made by one, two and three threads, and by a process that was killed and one that continued.
    """
    from dataclasses import replace

    import numpy as np

    import ggufkit
    from ggufkit.calibrate import streams
    from ggufkit.calibrate.fisher import collect
    from ggufkit.calibrate.job import with_gptq
    from ggufkit.calibrate.tape import Tape
    from ggufkit.formats.table import format_by_name
    from ggufkit.jobs.quantize import quantization
    from ggufkit.policy.recipe import recipe_of
    from ggufkit.runtime.model import load

    source = convert("F16", folder, without=(1, 2, 3))
    with load(source, backend=Tape(threads=1)) as model:
        tokens = model.tokenizer.encode("def walk(path):\n    for name in os.listdir(path):\n        yield path\n" * 10)
        found = collect(model, np.array(tokens[:64], np.int32).reshape(2, 32))
    sums = [block for name in sorted(found.moments) for block in found.moments[name]]
    sums += [found.fisher[name] for name in sorted(found.fisher)]
    half = format_by_name("F16")
    recipe = replace(recipe_of(type_), imatrix=found.imatrix("text"), leave_output=True, token_embd=half)
    rounds, made = streams.rounded, [0]

    def killed(*arguments):
        made[0] += 1
        if made[0] == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return rounds(*arguments)

    with ggufkit.open(source) as model:

        def write(name: str, threads: int) -> str:
            job = with_gptq(quantization(model, folder / name, recipe), model, found, sweeps=1)
            return sha(job.write(threads=threads)[0].read_bytes())

        if (child := os.fork()) == 0:
            streams.rounded = killed
            write("killed.gguf", 1)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        files = {write("killed.gguf", 1)} | {write(f"{threads}.gguf", threads) for threads in (1, 2, 3)}
    return f"{sha(np.concatenate([x.reshape(-1).astype(np.float64) for x in sums]))} {' '.join(sorted(files))}"


def all_jobs() -> list[str]:
    from ggufkit.formats.table import FORMATS

    kinds = ("encode", "weighted", "decode")
    jobs = ["products", *(f"convert:{name}" for name in ("Q8_0", "Q4_K_M"))]
    jobs += [f"run:{name}" for name in ("Q8_0", "Q4_K_M", "Q6_K", "Q3_K_M", "IQ4_XS", "IQ4_NL", "F16", "BF16")]
    jobs += [f"gptq:{name}" for name in ("Q4_0", "Q4_K_M", "IQ4_XS", "IQ3_XXS", "IQ2_XXS")]
    pairs = [(kind, name) for name, f in FORMATS.items() for kind in kinds if f.encodable or kind == "decode"]
    return jobs + [f"{kind}:{name}" for kind, name in pairs]


def result_of(job: str) -> str:
    from ggufkit.errors import CodecError

    kind, _, name = job.partition(":")
    with tempfile.TemporaryDirectory() as folder:
        if kind in ("encode", "weighted"):
            try:
                return sha(encode(name, kind == "weighted"))
            except CodecError:  # a type without importance, or not without it
                return "refused"
        if kind == "convert":
            return hashlib.sha256(convert(name, Path(folder)).read_bytes()).hexdigest()[:16]
        if kind in ("run", "gptq"):
            return {"run": run, "gptq": gptq}[kind](name, Path(folder))
        return {"decode": decode, "products": products}[kind](name)


def main() -> None:
    if sys.argv[1:] == ["list"]:
        print(*all_jobs(), sep="\n")
        return
    for job in sys.argv[1:]:
        print(job, result_of(job), flush=True)


if __name__ == "__main__":
    main()
