"""The simulator's JavaScript gives Python's digits: bytes of the codecs, values and errors of all methods."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import Any

import numpy as np
import pytest

from ggufkit.evaluate.methods import METHODS, Situation, measure
from ggufkit.formats.codec import encode
from ggufkit.web import page

CODECS = {"Q4_0": 32, "Q4_1": 32, "Q8_0": 32, "Q4_K": 256, "IQ4_NL": 32, "MXFP4": 32, "NVFP4": 64, "TQ2_0": 256}
PROGRAM = """
const input = JSON.parse(require("fs").readFileSync(0, "utf8"));
const f32s = (hex) => new Float32Array(Uint8Array.from(hex.match(/../g), (h) => parseInt(h, 16)).buffer);
const hex = (array) => Buffer.from(array.buffer, array.byteOffset, array.byteLength).toString("hex");
const all = f32s(input.weights);
const situations = Array.from({length: all.length / 256}, (_, i) => ({
  weights: all.subarray(256 * i, 256 * i + 256), activations: input.activations, rho: input.rho, alpha: input.alpha,
  scale: input.scale,
}));
const out = {codecs: {}, methods: {}};
for (const name of Object.keys(input.codecs))
  out.codecs[name] = situations.map((s) => hex(CODECS[name].encode(s.weights.subarray(0, CODECS[name].size)))).join("");
const H = hessian(situations[0]);
for (const method of METHODS) {
  const found = situations.map((s) => measure(method, s, H));
  out.methods[method.name] = {
    values: found.map((one) => hex(one.values)).join(""),
    ...Object.fromEntries(["rms", "weighted", "largest", "output", "relative"].map((k) => [k, found.map((o) => o[k])])),
  };
}
process.stdout.write(JSON.stringify(out));
"""


def node(
    program: str,
    value: object,
    parts: tuple[str, ...] = ("page.js", "floats.js", "searches.js", "codecs.js", "methods.js"),
) -> Any:
    """What a program prints as JSON that is run after some parts of a page, with `value` as JSON on its stdin."""
    if shutil.which("node") is None:
        pytest.skip("there is no node to run the page's functions")
    source = "\n".join([*map(page.part, parts), program])
    run = subprocess.run(
        ["node", "--input-type=commonjs", "-e", source],
        input=json.dumps(value),
        text=True,
        capture_output=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def blocks() -> np.ndarray:
    """1000 super-blocks: of many shapes and magnitudes, and those that break things."""
    rng = np.random.default_rng(18)
    x = rng.standard_normal((1000, 256))
    x[200:300] = rng.standard_t(2, (100, 256))
    x[300:400] = rng.integers(-8, 8, (100, 256)) / 4  # ties
    x[400:450] *= np.exp2(rng.integers(-30, 12, (50, 1)))
    x[450:500, ::7] = 0
    x[500:520] = np.abs(x[500:520])
    x[520:540] = -np.abs(x[520:540])
    x = x.astype(np.float32) * np.float32(0.02)
    x[0] = 0
    x[1] = -0.0
    x[2] = np.float32(0.3)
    x[3] = np.float32(1e-40)
    x[4, :] = 0
    x[4, 5] = 1
    x[5] = np.float32(3e4)
    x[6, :32] = np.linspace(-1e-20, 1e-20, 32)
    x[7, 3] = 4.85
    return x


@pytest.mark.parametrize("setting", [(0.0, 8, "matched", 1000), (0.9, 3, "norm", 50)])
def test_the_pages_numbers_are_pythons(setting):
    rho, alpha, scale, count = setting
    weights = blocks()[:count]
    activations = np.exp2(np.random.default_rng(1).integers(-4, 5, 32)) * 1.3
    got = node(
        PROGRAM,
        {
            "weights": weights.tobytes().hex(),
            "activations": activations.tolist(),
            "rho": rho,
            "alpha": alpha,
            "scale": scale,
            "codecs": CODECS,
        },
    )
    for name, size in CODECS.items():
        expected = encode(np.ascontiguousarray(weights[:, :size]), name)
        actual = np.frombuffer(bytes.fromhex(got["codecs"][name]), np.uint8).reshape(expected.shape)
        different = np.flatnonzero((actual != expected).any(1))
        assert different.size == 0, (name, different[:10], actual[different[0]], expected[different[0]])
    assert list(got["methods"]) == list(METHODS)
    situation = Situation(weights, activations, rho, alpha, scale)
    for name, found in got["methods"].items():
        expected = measure(name, situation)
        values = np.frombuffer(bytes.fromhex(found.pop("values")), np.float32).reshape(-1, 32)
        different = np.flatnonzero((values != expected.values).any(1))
        assert different.size == 0, (name, different[:10])
        for number, numbers in found.items():
            assert np.array_equal(numbers, getattr(expected, number)), (name, number)


def test_the_seeds_block_is_0_but_for_its_outlier():
    x = np.zeros(256, np.float32)
    x[:8] = [0.12, -0.08, 0.31, 4.85, -0.22, 0.05, -0.17, 0.28]
    values = measure("INT4 absmax", Situation(x)).values[0]
    assert np.count_nonzero(values) == 1
    assert values[3] == pytest.approx(4.85, abs=1e-2)


def block_of(sigma: float, **places: float) -> np.ndarray:
    x = (np.random.default_rng(5).standard_normal(256) * sigma).astype(np.float32)
    for place, value in places.items():
        x[int(place[1:])] = value
    return x


def output(name: str, situation: Situation) -> float:
    return float(measure(name, situation).output[0])


def test_what_the_page_is_made_to_show():
    outlier = Situation(block_of(0.1, _19=4.85))
    assert np.count_nonzero(measure("INT4 absmax", outlier).values) == 1
    assert np.count_nonzero(measure("Q4_0", outlier).values) <= 2
    for better in ("NVFP4", "IQ4_NL", "NF4", "Rotated INT4"):
        assert output(better, outlier) < output("Q4_0", outlier), better

    # AWQ: of use where an activation is large, not where a weight is.
    assert output("AWQ", outlier) == output("INT4 absmax", outlier)
    many = np.random.default_rng(3).standard_normal((200, 256)).astype(np.float32)
    hot = np.ones(32)
    hot[11] = 12
    errors = [np.mean(measure("AWQ", Situation(many, hot, alpha=alpha)).output ** 2) ** 0.5 for alpha in range(17)]
    assert min(errors) < 0.7 * errors[0]

    # GPTQ: a larger error of the weights, a smaller one of the output.
    plain, gptq = (measure(name, Situation(many, rho=0.9)) for name in ("INT4 absmax", "GPTQ"))
    assert gptq.rms.mean() > plain.rms.mean()
    assert gptq.output.mean() < 0.7 * plain.output.mean()
