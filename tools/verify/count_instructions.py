#!/usr/bin/env python3
"""Instructions of the inner loops of products, compiled for any CPU without having it.

    python tools/verify/count_instructions.py apple-m1 apple-m4 znver3
    python tools/verify/count_instructions.py apple-m4 --show tile

`dot` is a product of 64 bytes with what it is added to, in memory; `tile` the products of a group of 32 columns, for
as many tokens and rows as a tile of that CPU has, of 4-bit weights and of 8-bit ones; `few` those for a few tokens, and
`unpack` what takes 32 bytes of sixteen rows apart into two such groups of four bits.
"""

from __future__ import annotations

import argparse
import collections
import os
import re
import subprocess
import sys

TRIPLES = {"apple": "arm64-apple-macosx", "neoverse": "aarch64-linux-gnu", "cortex": "aarch64-linux-gnu"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cpus", nargs="+")
    parser.add_argument("--show", help="print the assembly of this one, too")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    for cpu in options.cpus:
        if options.here:
            count(cpu, options.show)
        else:  # features are found once a process
            environment = {**os.environ, "NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": os.environ.get("FEATURES", "")}
            show = ["--show", options.show] if options.show else []
            subprocess.run([sys.executable, __file__, "--here", *show, cpu], env=environment, check=True)


def triple_of(cpu: str) -> str:
    return TRIPLES.get(cpu.split("-", maxsplit=1)[0], "x86_64-unknown-linux-gnu")


def count(cpu: str, show: str | None) -> None:
    import numba
    import numpy as np
    from numba.core import config

    from ggufkit.kernels.cpu import CHOSEN
    from ggufkit.kernels.dot import (
        FEW_PANELS,
        PANELS,
        TOGETHER,
        TOKENS,
        WIDE,
        add_dots,
        add_scaled,
        bits_of,
        dot_bytes,
        dot_tile,
        load_bytes,
        load_wide_rows,
        store_steps,
        store_tile,
        zero_tile,
    )
    from ggufkit.kernels.jit import helper
    from ggufkit.kernels.lanes import load, store

    # Kernels have chosen their bodies; Numba itself has to believe that it is here.
    features, config.CPU_NAME, config.CPU_FEATURES = config.CPU_FEATURES or "", None, None
    narrow, wide = dot_tile(32, 15, False), dot_tile(32, WIDE, False)
    of_few = dot_tile(32, 15, False, TOGETHER, FEW_PANELS, TOGETHER)

    def dot(w, x, sums):
        store(sums, 0, dot_bytes(load(sums, 0), load_bytes(w, 0), load_bytes(x, 0)))

    def tile(w, x, scales, out):
        dots = narrow(w, 0, 4096, x, 0, 512, x, 0, 0)
        store_tile(out, 0, 64, add_scaled(zero_tile(), dots, scales, 0, 16, scales, 0, 1))

    def tile_wide(w, x, scales, out):
        dots = wide(w, 0, 4096, x, 0, 512, x, 0, 0)
        store_tile(out, 0, 64, add_scaled(zero_tile(), dots, scales, 0, 16, scales, 0, 1))

    def few(w, x, scales, out):
        add_dots(out, 0, of_few(w, 0, 1024, x, 0, 1, x, 0, 1), scales, 0, 128, scales, 0)

    def unpack(data, stride, w):
        words = load_wide_rows(data, 0, stride)
        store_steps(w, 0, bits_of(words, 0, 15))
        store_steps(w, 128, bits_of(words, 4, 15))

    kind = numba.typeof
    bytes_, ints, floats = (kind(np.empty(1, dtype)) for dtype in (np.uint8, np.int32, np.float32))
    print(f"{cpu}: {', '.join(f'{part}={body}' for part, body in CHOSEN.items())}; tiles of {TOKENS} x {16 * PANELS}")
    jobs = [
        (dot, (bytes_, bytes_, ints), 64),
        (tile, (ints, ints, floats, floats), TOKENS * PANELS * 16 * 32),
        (tile_wide, (ints, ints, floats, floats), TOKENS * PANELS * 16 * 32),
        (few, (ints, ints, floats, floats), TOGETHER * FEW_PANELS * 16 * 32),
        (unpack, (bytes_, numba.int64, ints), 16 * 64),
    ]
    for function, arguments, products in jobs:
        lines = assembly(helper(function), arguments, cpu, features)
        names = collections.Counter(line.split()[0] for line in lines)
        total = sum(names.values())
        most = ", ".join(f"{number} {name}" for name, number in names.most_common(12))
        print(f"  {function.__name__:<10}{total:5} instructions, {products / total:5.1f} products each: {most}")
        if show == function.__name__:
            print("\n".join(lines))


def assembly(function, arguments: tuple, cpu: str, features: str) -> list[str]:
    """The instructions of a helper that returns nothing, compiled for `cpu`."""
    import llvmlite.binding as llvm

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    function.compile(arguments)
    found = function.overloads[arguments]
    module = llvm.parse_assembly(str(found.library._final_module))
    machine = llvm.Target.from_triple(triple_of(cpu)).create_target_machine(cpu=cpu, features=features, opt=3)
    module.triple, module.data_layout = triple_of(cpu), str(machine.target_data)
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.slp_vectorization = True
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    text = machine.emit_assembly(module)
    name = found.fndesc.llvm_func_name
    body = re.split(r"\n_?\"?" + re.escape(name) + r"\"?:", text)[1].split(".cfi_endproc")[0].split("\n.Lfunc_end")[0]
    return [line.strip() for line in body.splitlines() if re.match(r"\t[a-z]", line)]


if __name__ == "__main__":
    main()
