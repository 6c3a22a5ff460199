"""ggufkit: convert, inspect, patch and run GGUF models.

    import ggufkit

    with ggufkit.open("model.gguf") as model:
        model.metadata["general.name"]
    ggufkit.quantize("model-BF16.gguf", "model-Q4_K_M.gguf", "Q4_K_M")

What a verb of the command line does, the function of its name does here: it takes paths, returns objects, and prints
nothing. Everything public is in `__all__`; a module is imported when one of its names is first used (PEP 562), so
that `import ggufkit` stays cheap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ggufkit.errors import GgufkitError as GgufkitError
    from ggufkit.errors import Hint as Hint
    from ggufkit.evaluate.compare import Comparison as Comparison
    from ggufkit.evaluate.perplexity import Estimate as Estimate
    from ggufkit.evaluate.verify import Verdict as Verdict
    from ggufkit.formats.codec import decode as decode
    from ggufkit.formats.codec import encode as encode
    from ggufkit.formats.table import FORMATS as FORMATS
    from ggufkit.formats.table import Format as Format
    from ggufkit.gguf.checks.finding import Finding as Finding
    from ggufkit.gguf.edit.session import Edit as Edit
    from ggufkit.gguf.edit.session import edit as edit
    from ggufkit.gguf.edit.session import undo as undo
    from ggufkit.gguf.hashes import Hash as Hash
    from ggufkit.gguf.header import Limits as Limits
    from ggufkit.gguf.reader import GGUF as GGUF
    from ggufkit.gguf.reader import open as open
    from ggufkit.gguf.sharded import ShardedWriter as ShardedWriter
    from ggufkit.gguf.validate import validate as validate
    from ggufkit.gguf.values import Value as Value
    from ggufkit.gguf.values import ValueType as ValueType
    from ggufkit.gguf.writer import Writer as Writer
    from ggufkit.importance.imatrix_file import Imatrix as Imatrix
    from ggufkit.importance.imatrix_file import read_imatrix as read_imatrix
    from ggufkit.jobs.convert import convert as convert
    from ggufkit.jobs.plan import Plan as Plan
    from ggufkit.jobs.plan import PlannedTensor as PlannedTensor
    from ggufkit.jobs.quantize import quantize as quantize
    from ggufkit.jobs.to_huggingface import export_hf as export_hf
    from ggufkit.jobs.to_mlx import export_mlx as export_mlx
    from ggufkit.memory.fit import fit as fit
    from ggufkit.memory.report import Fit as Fit
    from ggufkit.policy.recipe import Recipe as Recipe
    from ggufkit.runtime.generate import Generation as Generation
    from ggufkit.runtime.model import Model as Model
    from ggufkit.runtime.model import load as load
    from ggufkit.tensors.tensor import Tensor as Tensor
    from ggufkit.tokenizer.run.tokenizer import Tokenizer as Tokenizer
    from ggufkit.tokenizer.run.tokenizer import load_tokenizer as load_tokenizer
    from ggufkit.verbs import Difference as Difference
    from ggufkit.verbs import compare as compare
    from ggufkit.verbs import diff as diff
    from ggufkit.verbs import explore as explore
    from ggufkit.verbs import hash as hash
    from ggufkit.verbs import imatrix as imatrix
    from ggufkit.verbs import merge as merge
    from ggufkit.verbs import perplexity as perplexity
    from ggufkit.verbs import plan as plan
    from ggufkit.verbs import recipe as recipe
    from ggufkit.verbs import split as split
    from ggufkit.verbs import verify as verify
    from ggufkit.web.simulate import simulate as simulate

__version__ = "0.1.0"

# public name → the module that defines it, as above
_PUBLIC = {
    "FORMATS": "formats.table",
    "GGUF": "gguf.reader",
    "Comparison": "evaluate.compare",
    "Difference": "verbs",
    "Edit": "gguf.edit.session",
    "Estimate": "evaluate.perplexity",
    "Finding": "gguf.checks.finding",
    "Fit": "memory.report",
    "Format": "formats.table",
    "Generation": "runtime.generate",
    "GgufkitError": "errors",
    "Hash": "gguf.hashes",
    "Hint": "errors",
    "Imatrix": "importance.imatrix_file",
    "Limits": "gguf.header",
    "Model": "runtime.model",
    "Plan": "jobs.plan",
    "PlannedTensor": "jobs.plan",
    "Recipe": "policy.recipe",
    "ShardedWriter": "gguf.sharded",
    "Tensor": "tensors.tensor",
    "Tokenizer": "tokenizer.run.tokenizer",
    "Value": "gguf.values",
    "ValueType": "gguf.values",
    "Verdict": "evaluate.verify",
    "Writer": "gguf.writer",
    "compare": "verbs",
    "convert": "jobs.convert",
    "decode": "formats.codec",
    "diff": "verbs",
    "edit": "gguf.edit.session",
    "encode": "formats.codec",
    "export_hf": "jobs.to_huggingface",
    "export_mlx": "jobs.to_mlx",
    "explore": "verbs",
    "fit": "memory.fit",
    "hash": "verbs",
    "imatrix": "verbs",
    "load": "runtime.model",
    "load_tokenizer": "tokenizer.run.tokenizer",
    "merge": "verbs",
    "open": "gguf.reader",
    "perplexity": "verbs",
    "plan": "verbs",
    "quantize": "jobs.quantize",
    "read_imatrix": "importance.imatrix_file",
    "recipe": "verbs",
    "simulate": "web.simulate",
    "split": "verbs",
    "undo": "gguf.edit.session",
    "validate": "gguf.validate",
    "verify": "verbs",
}

__all__ = ["__version__", *_PUBLIC]  # noqa: PLE0604 - the keys are names


if not TYPE_CHECKING:  # a type checker reads the imports above, and reports what is not there

    def __getattr__(name):
        if name not in _PUBLIC:
            raise AttributeError(f"module 'ggufkit' has no attribute {name!r}")
        import importlib

        return getattr(importlib.import_module(f"ggufkit.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
