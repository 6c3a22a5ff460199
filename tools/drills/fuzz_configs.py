#!/usr/bin/env python3
"""Change one or two settings of a config.json and convert: anything but a file or an error of one line is a fault.

python tools/drills/fuzz_configs.py [FAMILY …] [--cases 2000] [--seed 0]

The seeds are the tests' tiny checkpoints of all families. A setting anywhere in the config is taken out, or becomes
another number, or something of another kind. Cases are reproducible from seed and number. The process may use 6 GiB of
addresses; a case may take 5 seconds of CPU time. Exit code 1 where there is a fault.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[2] / place) for place in ("tests/models", "tests/oracles")]

from tiny_checkpoints import write
from tiny_families import FAMILIES

from ggufkit.errors import GgufkitError
from ggufkit.jobs.convert import convert

SECONDS, MEMORY = 5, 6 << 30
LONGEST = 1000  # characters of a message, but for one that names all architectures

OTHERS: list[Any] = [
    None,
    True,
    False,
    "",
    "x",
    "1e9",
    "\u202e\x1b[31m",
    "A" * 5000,
    [],
    {},
    {"a": 1},
    [[1]],
    [None],
    ["x"],
]
OTHERS += [0, 1, -1, 2, 3, 7, 1.5, -0.5, 10**6, 10**9, 1 << 31, 1 << 32, 1 << 63, 10**30, 1e308]
OTHERS += [float("nan"), float("inf"), -float("inf"), [0], [1, 2], [10**9] * 3]


def places(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where the settings are: keys and numbers of items, from the outside in."""
    items = value.items() if isinstance(value, dict) else enumerate(value[:3]) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*before, key)
        yield from places(inner, (*before, key))


def mutant(config: dict[str, Any], rng: random.Random) -> tuple[dict[str, Any], str]:
    """The config with one or two settings changed, and which."""
    config, done = copy.deepcopy(config), []
    for _ in range(rng.choice([1, 1, 2])):
        *outer, last = rng.choice(list(places(config)))
        holder: Any = config
        for key in outer:
            holder = holder[key]
        old, chance = holder[last], rng.random()
        if chance < 0.12:
            del holder[last]
            done.append(f"without {outer}{last}")
            continue
        if chance < 0.3 and type(old) in (int, float):
            holder[last] = rng.choice(
                [old + 1, old - 1, old * 2, -old, old * 10**9, float(old), str(old), [old], [old] * 4]
            )
        elif chance < 0.4 and isinstance(old, list):
            holder[last] = rng.choice([old[:-1], old + old, old * 1000, [], None, old[::-1]])
        else:
            holder[last] = copy.deepcopy(rng.choice(OTHERS))
        done.append(f"{outer}{last} = {repr(holder[last])[:60]}")
    return config, ", ".join(done)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*")
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.RLIM_INFINITY))
    faults = 0
    with tempfile.TemporaryDirectory() as scratch:
        folders: dict[str, Path] = {}
        for number in range(arguments.cases):
            rng = random.Random(f"{arguments.seed}-{number}")
            name = rng.choice(arguments.families or sorted(FAMILIES))
            if name not in folders:
                folders[name] = write(FAMILIES[name](), Path(scratch) / name)
            file = next(
                folders[name] / end for end in ("config.json", "params.json") if (folders[name] / end).is_file()
            )
            original = file.read_text()
            changed, what = mutant(json.loads(original), rng)
            file.write_text(json.dumps(changed))
            fault = converted(folders[name], Path(scratch) / "out.gguf")
            file.write_text(original)
            if fault:
                faults += 1
                print(f"{number} {name}: {what}: {fault}", flush=True)
    print(f"{arguments.cases} configs, {faults} faults")
    return faults > 0


def converted(folder: Path, out: Path) -> str:
    """What is wrong about how a checkpoint is converted or refused; "" for nothing."""
    start = time.process_time()
    try:
        convert(folder, out, "F16", force=True, pre="gpt-2", threads=1)
    except GgufkitError as e:
        text = str(e)
        if "\n" in text or "\x1b" in text or (len(text) > LONGEST and "; known: " not in text):
            return f"the message is {text[:200]!r}"
    except Exception:
        return traceback.format_exc(limit=-2).replace("\n", " | ")
    seconds = time.process_time() - start
    return f"{seconds:.1f} s" if seconds > SECONDS else ""


if __name__ == "__main__":
    sys.exit(main())
