"""How much memory a run takes, before it is started: nothing but a header is read.

    model = model_of(ggufkit.open("model.gguf"))         # or model_of_plan(plan, name)
    fit = report(model, Setup("llama.cpp", context=8192), [device("rtx-4090"), this_machine()])
    fit.lines                       a `Line` for each part on each device: bytes, formula, how exact
    fit.used(0), fit.fits           bytes on a device; whether everything fits
    fit.largest_context()           tokens
    fit.speed(tokens)               bound of tokens per second
    fit.arguments()                 llama.cpp's

    model       tensors' sizes, and of each layer what it remembers: `Model`, `Layer`
    setup       how it is to run: engine, context, slots, types of the cache …: `Setup`
    devices     names, memory, bandwidth: `device`, `this_machine`
    placement   which layers are on which device
    weights, cache, compute        the lines; the formulas stand in front of each file
    report      all together: `Fit`

`ggufkit.fit` does it from a path. Everything here but weights on MLX works without NumPy.
"""

from ggufkit.memory.devices import DEVICES, Device, device, this_machine
from ggufkit.memory.line import Line
from ggufkit.memory.model import Layer, Matrix, Model, model_of, model_of_plan
from ggufkit.memory.report import Fit, report
from ggufkit.memory.setup import ENGINES, Setup

__all__ = [
    "DEVICES",
    "ENGINES",
    "Device",
    "Fit",
    "Layer",
    "Line",
    "Matrix",
    "Model",
    "Setup",
    "device",
    "model_of",
    "model_of_plan",
    "report",
    "this_machine",
]
