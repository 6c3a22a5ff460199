"""Which CPU kernels are compiled for, by what its system says of it; and that all bodies give the same bits."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ggufkit.errors import UsageError
from ggufkit.kernels.cpu import Body, choose, find_cpu, this_cpu
from ggufkit.kernels.jit import CPU_FEATURES

HALF, DOT, MATRIX = {"fullfp16"}, {"fullfp16", "dotprod"}, {"fullfp16", "dotprod", "i8mm", "bf16"}
AVX2 = {"avx2", "fma", "f16c"}

# A Mac: LLVM's name, which FEAT_… of sysctl are there, what must be found.
MACS = [
    ("apple-m1", ["DotProd", "FP16"], DOT),
    ("apple-m2", ["DotProd", "FP16", "I8MM", "BF16"], MATRIX),
    ("apple-m3", ["DotProd", "FP16", "I8MM", "BF16"], MATRIX),
    ("apple-m4", ["DotProd", "FP16", "I8MM", "BF16"], MATRIX),
    ("apple-m4", [], MATRIX),  # a system too old to name them
    ("apple-m5", ["DotProd", "FP16", "I8MM", "BF16"], MATRIX),
    ("apple-m99", ["DotProd", "FP16", "I8MM", "BF16"], MATRIX),  # a name that is not known yet
]

# Linux: LLVM's name, bits of HWCAP and HWCAP2, what must be found.
BASE = [0, 1]
BOARDS = [
    ("cortex-a72", BASE, [], set()),  # Raspberry Pi 4
    ("cortex-a76", [*BASE, 10, 20], [], DOT),  # Raspberry Pi 5
    ("neoverse-n1", [*BASE, 10, 20], [], DOT),  # Graviton 2, Ampere Altra
    ("neoverse-v1", [*BASE, 10, 20, 22], [13, 14], MATRIX),  # Graviton 3
    ("neoverse-v2", [*BASE, 10, 20, 22], [1, 13, 14], MATRIX),  # Graviton 4
    ("generic", [*BASE, 10, 20], [13, 14], MATRIX),
]

X86 = [
    ("haswell", AVX2, {"avx512f", "avxvnni"}),
    ("znver1", AVX2, {"avx512f", "avxvnni"}),
    ("znver2", AVX2, {"avx512f", "avxvnni"}),
    ("znver3", AVX2, {"avx512f", "avxvnni"}),
    ("znver4", AVX2 | {"avx512f", "avx512bw", "avx512vnni"}, {"avxvnni"}),
    ("znver5", AVX2 | {"avx512f", "avx512bw", "avx512vnni", "avxvnni"}, set()),
    ("alderlake", AVX2 | {"avxvnni"}, {"avx512f"}),
    ("skylake-avx512", AVX2 | {"avx512f", "avx512bw"}, {"avx512vnni"}),
    ("x86-64-v2", {"ssse3", "sse4.2"}, {"avx2", "fma", "f16c"}),
]


@pytest.mark.parametrize(("name", "known", "expected"), MACS)
def test_a_mac_is_asked_with_sysctl(name, known, expected):
    def sysctl(entry: str) -> int:
        return int(entry.removeprefix("hw.optional.arm.FEAT_") in known)

    cpu = find_cpu(name, [], system="darwin", machine="arm64", sysctl=sysctl)
    assert cpu.features & MATRIX == expected
    assert {"neon", "fp-armv8"} <= cpu.features
    assert cpu.source == "sysctl"


def test_llvm_is_told_what_it_does_not_know_of_a_mac():
    found = find_cpu("apple-m99", [], system="darwin", machine="arm64", sysctl=lambda name: 1)
    assert found.unseen >= MATRIX
    assert not find_cpu("apple-m4", [], system="darwin", machine="arm64", sysctl=lambda name: 1).unseen


@pytest.mark.parametrize(("name", "first", "second", "expected"), BOARDS)
def test_linux_is_asked_for_hwcap(name, first, second, expected):
    words = {16: sum(1 << bit for bit in first), 26: sum(1 << bit for bit in second)}
    seen = ["aes", "crc", "fp-armv8", "lse", "neon", "sha2", "sha3"]
    cpu = find_cpu(name, seen, system="linux", machine="aarch64", auxiliary=words.__getitem__)
    assert cpu.features & MATRIX == expected
    assert cpu.source == "HWCAP"
    assert name != "generic" or cpu.unseen == expected


def test_another_system_goes_by_the_name():
    cpu = find_cpu("neoverse-n1", [], system="freebsd14", machine="arm64")
    assert cpu.features & MATRIX == DOT
    assert cpu.source == "its name"


@pytest.mark.parametrize(("name", "there", "absent"), X86)
def test_a_named_cpu_has_what_all_of_its_name_have(name, there, absent):
    cpu = this_cpu(name, None)
    assert there <= cpu.features
    assert not absent & cpu.features
    assert find_cpu("host", ["avx2"], machine="x86_64").features == {"avx2"}  # what LLVM sees, nothing else


def test_features_are_added_and_taken_away():
    cpu = this_cpu("znver4", "-avx512f,+avxvnni")
    assert "avxvnni" in cpu.features
    assert "avx512f" not in cpu.features
    assert this_cpu("generic", "").features == set()


def test_the_first_body_that_fits_is_chosen(monkeypatch):
    monkeypatch.delenv("GGUFKIT_BODIES", raising=False)
    bodies = [Body("a", "x y", 1), Body("b", "x", 2), Body("plain", "", 3)]
    assert [choose("part", bodies, frozenset(f)) for f in ({"x", "y"}, {"x"}, {"y"})] == [1, 2, 3]
    monkeypatch.setenv("GGUFKIT_BODIES", "other=a, part=plain")
    assert choose("part", bodies, frozenset({"x"})) == 3
    monkeypatch.setenv("GGUFKIT_BODIES", "part=a")
    with pytest.raises(UsageError, match="GGUFKIT_BODIES: part=a needs a CPU with y"):
        choose("part", bodies, frozenset({"x"}))
    monkeypatch.setenv("GGUFKIT_BODIES", "part=c")
    with pytest.raises(UsageError, match="part=c is not one of a, b, plain"):
        choose("part", bodies, frozenset({"x"}))


# A program that prints a hash of products of bytes: narrow and wide, of one row and of a tile; those of a super-block
# with whole numbers as scales it compares with NumPy's.
PROGRAM = """
import hashlib, sys
import numpy as np
from ggufkit.kernels.dot import MIDDLE, PANELS, TOKENS, WIDE, dot_bytes, dot_tile, dot_wide, load_bytes, lookup_bytes
from ggufkit.kernels.dot import add_scaled, columns_of_step, flip, pack_steps, store_bytes, store_tile, zero_tile
from ggufkit.kernels.dot import dot_unit, factors_of, start_of, sum_group, tile_unit, turn_bytes, turns
from ggufkit.kernels.jit import kernel
from ggufkit.kernels.lanes import load, splat, store, total

steps, steps_wide = pack_steps(32, 15), pack_steps(32, WIDE)
STEP = columns_of_step(WIDE)  # 2 where wide weights are words
tile_15, tile_24, tile_31, tile_63, tile_wide = (dot_tile(32, top, False) for top in (15, 24, 31, 63, WIDE))

@kernel
def products(narrow, wide, x, table, sums, looked_up):
    for i in range(0, narrow.size, 64):
        none, row = splat(np.int32(-5)), load_bytes(x, i)
        store(sums, i // 2, dot_bytes(none, load_bytes(narrow, i), row))
        store(sums, i // 2 + 16, dot_wide(none, flip(load_bytes(wide, i)), row))
        store_bytes(looked_up, i, lookup_bytes(table, load_bytes(narrow, i) & splat(np.int32(0x0F0F0F0F))))

@kernel
def pack(levels, weights):
    for p in range(PANELS):
        steps(levels, 256 * p, 16, weights, 256 * p, 128)

@kernel
def pack_wide(levels, weights):
    for p in range(PANELS):
        steps_wide(levels, 256 * p, 16, weights, 1024 // STEP * p, 512 // STEP)

@kernel
def tiles(a, b, c, d, x, x_wide, ones, out):
    some = zero_tile()
    some = add_scaled(some, tile_15(a, 0, 256, x, 0, 8, x, 0, 0), ones, 0, 16, ones, 0, 1)
    some = add_scaled(some, tile_24(a, 0, 256, x, 0, 8, x, 0, 0), ones, 0, 16, ones, 0, 1)
    some = add_scaled(some, tile_31(b, 0, 256, x, 0, 8, x, 0, 0), ones, 0, 16, ones, 0, 1)
    some = add_scaled(some, tile_63(c, 0, 256, x, 0, 8, x, 0, 0), ones, 0, 16, ones, 0, 1)
    some = add_scaled(some, tile_wide(d, 0, 1024 // STEP, x_wide, 0, 32 // STEP, x, 0, 0), ones, 0, 16, ones, 0, 1)
    store_tile(out, 0, 16 * PANELS, some)

unit, start, sum_of_group, tile_of_unit = dot_unit(16, 63, True), start_of(32), sum_group(16, 32), tile_unit(16, 32)
TURNED = turns(32)

@kernel
def units(levels, scales, x, first, first_scales, weights, turned, factors, starts, ones, row, out):
    for p in range(PANELS):
        begin = splat(np.int32(0))
        for part in range(4):
            steps(levels, 1024 * p + 16 * part, 64, weights, 1024 * p + 256 * part, 128)
        for g in range(16):
            by = factors_of(load(scales, 256 * p + 16 * g))
            store(factors, 256 * p + 16 * g, by)
            begin = sum_of_group(begin, weights, 1024 * p + 64 * g, by)
        store(starts, 16 * p, begin)
    for i in range(0, x.size, 64):
        store_bytes(turned, i, turn_bytes(load_bytes(x, i)) if TURNED else load_bytes(x, i))
    words = turned.view(np.int32)
    dots = tile_of_unit(weights, 0, 1024, words, 0, 64, factors, 0, 256, starts, 0, 16, first, 0)
    store_tile(out, 0, 16 * PANELS, add_scaled(zero_tile(), dots, ones, 0, 16, ones, 0, 1))
    for i in range(0, 256, 64):  # what sums start with, for the first token; then the first row
        store(starts, i // 4, start(load_bytes(x, i)))
    row[0] = total(unit(first, x, 0, starts, 0, factors_of(load(first_scales, 0))))

extremes = np.array([127, -127, -127, 127] * 2 + [0] * 8, np.int8)
rng = np.random.default_rng(0)
x = np.concatenate([rng.integers(-127, 128, 1024).astype(np.int8), np.tile(extremes, 64)])
wide = rng.integers(-128, 128, x.size).astype(np.int8)
wide[1024:] = np.where(np.arange(1024) % 5, -128, 127)
narrow = rng.integers(0, 128, x.size).astype(np.uint8)
narrow[1024:] = 127
sums, looked_up = np.zeros(x.size // 2, np.int32), np.zeros(x.size, np.uint8)
products(narrow, wide, x, np.arange(16, dtype=np.uint8) * 16 + 3, sums, looked_up)
sums.reshape(-1, 2, 16)[:, 1] -= MIDDLE * x.reshape(-1, 16, 4).sum(-1, dtype=np.int32)

def packed(levels, pack=pack):  # (32 rows, 64 columns) uint8
    weights = np.zeros(1024, np.int32)
    pack(levels.reshape(-1).view(np.int32), weights)
    return weights

def weights(top):
    levels = rng.integers(0, top + 1, (32, 64)).astype(np.uint8)
    levels[:4] = top
    return packed(levels)

d = rng.integers(-128, 128, (32, 64)).astype(np.int8)
d[:4] = -128
d = packed(d.view(np.uint8) ^ MIDDLE, pack_wide)
tokens = rng.integers(-127, 128, (6, 32)).astype(np.int8)
tokens[0], tokens[1] = 127, -127
out = np.zeros(TOKENS * PANELS * 16, np.float32)
ones = np.ones(64, np.float32)
x = tokens[:TOKENS].reshape(-1)
x_wide = x.astype(np.int16 if STEP == 2 else np.int8)
tiles(weights(15), weights(31), weights(63), d, x.view(np.int32), x_wide.view(np.int32), ones, out)
correction = 128 * tokens.astype(np.int32).sum(1) if MIDDLE else np.zeros(6)
first = (out.reshape(TOKENS, PANELS, 16)[:2, 0] - correction[:2, None]).astype(np.int32)

levels = rng.integers(-32, 32, (16 * PANELS, 256)).astype(np.int8)
levels[1], levels[2], levels[3] = -32, 31, np.tile([-32, 31], 128)
scales = rng.integers(-128, 128, (PANELS, 16, 16)).astype(np.int32)  # (panels, groups, rows)
scales[:, :, 1] = -128
x = rng.integers(-127, 128, (TOKENS, 256)).astype(np.int8)
x[1] = 127
x[-1] = np.where(levels[3] < 0, -127, 127)
weights, starts, row = np.zeros(1024 * PANELS, np.int32), np.zeros(64, np.int32), np.zeros(1, np.int64)
factors, unit_out = np.zeros(256 * PANELS, np.int32), np.zeros(TOKENS * PANELS * 16, np.float32)
turned = np.zeros(x.size, np.int8)
units(levels.reshape(-1).view(np.int32), scales.reshape(-1), x.reshape(-1), (levels[0] + 32).view(np.uint8),
      scales[0, :, 0].copy(), weights, turned, factors, starts, ones, row, unit_out)
of_rows = scales.swapaxes(1, 2).reshape(-1, 16).repeat(16, 1)
expected = x.astype(np.int64) @ (levels * of_rows.astype(np.int64)).T
assert np.array_equal(unit_out.reshape(TOKENS, -1), expected.astype(np.float32)) and row[0] == expected[0, 0]
print(hashlib.sha256(sums.tobytes() + looked_up.tobytes()).hexdigest(), hashlib.sha256(first.tobytes()).hexdigest())
"""

BODIES = {
    "plain": "",
    "avx512vnni": "avx512f avx512vnni",
    "avxvnni": "avx2 avxvnni",
    "avx512": "avx512f avx512bw",
    "avx2": "avx2",
    "ssse3": "ssse3",
    "dotprod": "neon dotprod",
    "i8mm": "neon dotprod i8mm",
}


def hashes(body: str, tmp_path) -> str:
    lookup = body if body in ("avx512", "avx2", "ssse3", "plain") else "plain"
    environment = {
        **os.environ,
        "GGUFKIT_BODIES": f"dot={body},lookup={lookup}",
        "NUMBA_CACHE_DIR": str(tmp_path),
    }
    run = [sys.executable, "-c", PROGRAM]
    return subprocess.run(run, env=environment, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return hashes("plain", tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize("body", [body for body in BODIES if body != "plain"])
def test_bodies_give_the_same_sums(body, plain, tmp_path):
    if not CPU_FEATURES.issuperset(BODIES[body].split()):
        pytest.skip(f"this CPU has no {body}")
    assert hashes(body, tmp_path) == plain


def test_the_plain_body_is_right(plain):
    """Against NumPy, on the same numbers."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.integers(-127, 128, 1024), np.tile([127, -127, -127, 127] * 2 + [0] * 8, 64)])
    wide = rng.integers(-128, 128, x.size)
    wide[1024:] = np.where(np.arange(1024) % 5, -128, 127)
    narrow = rng.integers(0, 128, x.size)
    narrow[1024:] = 127
    sums = np.stack([(w * x).reshape(-1, 16, 4).sum(-1) - 5 for w in (narrow, wide)], 1).astype(np.int32)
    looked_up = ((narrow & 15) * 16 + 3).astype(np.uint8)
    assert plain.split()[0] == hashlib.sha256(sums.tobytes() + looked_up.tobytes()).hexdigest()


# Rows of IQ4_XS whose words are as large as they get, and of activations, of any sign in each quarter of two tiles by a
# super-block: sums of four quarters have to fit int16.
LARGEST = """
import itertools
import numpy as np
from ggufkit.formats.table import format_by_name
from ggufkit.runtime.cpu.weight import Weight
from ggufkit.tensors.tensor import Tensor

quarters = list(itertools.product((0, 1), repeat=4))  # panel or tile 0: first half, second half; 1: the same
blocks = np.zeros((4, 2, 16, 4, 136), np.uint8)  # pairs of panels, panels, rows, super-blocks; levels are -127
blocks[..., 1] = 0x3C
x = np.empty((6, 2, 4, 4, 2, 128), np.float32)  # pairs of tiles, tiles, tokens, super-blocks, halves
for pair, u in itertools.product(range(6), range(4)):
    for side, half in itertools.product(range(2), range(2)):
        high = quarters[(4 * pair + u) % 16][2 * side + half]
        x[pair, side, :, u, half] = 1 - 2 * high
        if pair < 4:  # scales are 31 or -32
            blocks[pair, side, :, u, [2 + half, 4 + 2 * half, 5 + 2 * half]] = 255 * high
blocks, x = blocks.reshape(128, -1), x.reshape(48, -1)
blocks.flags.writeable = False
weight = Weight(Tensor("w", (128, 1024), format_by_name("IQ4_XS"), lambda lo, hi: blocks[lo:hi]))
alone = np.concatenate([weight.multiply(row[None]) for row in x])
assert np.abs(alone).max() > 127 * 31 * 1024
for n in (17, 21, 44, 48):
    assert np.array_equal(weight.multiply(x[:n]), alone[:n]), n
"""


@pytest.mark.parametrize("body", ["avx2"])
def test_the_largest_words_fit_pairs(body, tmp_path):
    if not CPU_FEATURES.issuperset(BODIES[body].split()):
        pytest.skip(f"this CPU has no {body}")
    environment = {**os.environ, "GGUFKIT_BODIES": f"dot={body}", "NUMBA_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", LARGEST], env=environment, check=True)


def test_macs_get_their_instructions():
    """Of LLVM, which compiles for any CPU: a product of 64 bytes, a tile of a prompt, one of a few tokens."""
    tool = Path(__file__).parent.parent / "tools" / "verify" / "count_instructions.py"
    run = [sys.executable, tool, "apple-m1", "apple-m4"]
    lines = subprocess.run(run, capture_output=True, text=True, check=True).stdout.splitlines()
    found = [(line.split()[0], int(line.split()[1]), line) for line in lines if line.startswith(" ")]
    m1, m4 = found[: len(found) // 2], found[len(found) // 2 :]
    products = {"dot": 4, "tile": 128, "tile_wide": 128, "few": 128}
    for name, number, line in m1:
        assert name not in products or f" {products[name]} sdot" in line
        assert number <= {"dot": 20}.get(name, 290), line
    for name, _, line in m4:
        assert name in ("dot", "unpack") or " 64 smmla" in line
