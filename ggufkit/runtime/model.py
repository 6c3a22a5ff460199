"""A model that runs.

model = ggufkit.load("model.gguf")
for piece in model.generate("def main(", max_tokens=64):     # text as it comes
    print(piece, end="", flush=True)
cache = model.new_cache(512)
model.forward(tokens, cache)                    # logits of the last token, (vocabulary,)
model.forward(tokens, cache, logits="all")      # of all, (n, vocabulary)
model.embed(tokens)                             # an encoder's vector of the text
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ggufkit.arch.hyperparameters import read_hyperparameters
from ggufkit.arch.registry import graph_of
from ggufkit.errors import GGUFError, UsageError, printable
from ggufkit.gguf.kind import other_kind
from ggufkit.gguf.reader import GGUF
from ggufkit.gguf.reader import open as open_gguf
from ggufkit.media.pictures import MOST_BYTES
from ggufkit.runtime.backend import make_ops
from ggufkit.runtime.batch import Piece, step
from ggufkit.runtime.embedding import Text, embeddings, together
from ggufkit.runtime.kv.cache import Cache
from ggufkit.runtime.lora import AdaptedOps, read_adapters
from ggufkit.runtime.ops import CacheSpec, Ops
from ggufkit.runtime.replay import Replays
from ggufkit.runtime.rope import RopeTables
from ggufkit.runtime.seen import MARKER, Shown
from ggufkit.runtime.sizes import CONTEXT
from ggufkit.runtime.weights import load_weights
from ggufkit.storage.regular import read_small

if TYPE_CHECKING:
    from ggufkit.runtime.constrain.grammar import Grammar
    from ggufkit.runtime.constrain.matcher import Grammars
    from ggufkit.runtime.diffusion import Diffusion
    from ggufkit.runtime.encoders.media import Media
    from ggufkit.runtime.generate import Generation
    from ggufkit.runtime.speculate import Ahead
    from ggufkit.tensors.tensor import Tensor
    from ggufkit.tokenizer.run.tokenizer import Tokenizer

__all__ = ["File", "Model", "load", "normalized"]

File = bytes | str | os.PathLike[str]


class Model:
    """A model with its weights mapped, ready to run. Get one from `load`.

    Attributes
    ----------
    gguf : the open file.
    hyper : sizes and constants.
    ops : the backend.
    vocabulary : how many tokens there are.
    adapters : LoRA adapters beside its weights, see `adapt`.
    media : makes prompts with images and sound; None of a model that was loaded without `mmproj`.
    shown : what ids below 0 in prompts stand for.
    """

    def __init__(
        self,
        gguf: GGUF,
        ops: Ops,
        lora: Sequence[tuple[str | os.PathLike[str], float]] = (),
        mmproj: str | os.PathLike[str] | None = None,
    ):
        self.gguf, self.ops = gguf, ops
        adapters = read_adapters(lora, gguf)
        name = gguf.get("general.architecture", str)
        self.graph = graph_of(name)
        self.hyper = read_hyperparameters(gguf, name, self.graph)
        tensors = {
            name: tensor if name in gguf.changed else _mapped(gguf, tensor) for name, tensor in gguf.tensors.items()
        }
        self.weights = load_weights(gguf.path, tensors, self.hyper, self.graph, ops, adapters)
        self._plain, self._vectors = ops, adapters.embedding(ops)
        adapters.finish()
        self.adapters = adapters.all
        self._adapted: dict[tuple[float, ...], Ops] = {}
        self.vocabulary = self.weights.vocabulary
        self.tables = RopeTables(self.weights.factors, bool(self.hyper.rope_sections))
        self.replays, self.shown = Replays(), Shown()
        self.adapt()
        self.media = None if mmproj is None else self._media(mmproj)

    def __repr__(self) -> str:
        return f"<Model {printable(self.gguf.path)}: {self.hyper.name}, {self.hyper.layers} layers>"

    def _media(self, path: str | os.PathLike[str]) -> Media:
        from ggufkit.runtime.encoders.media import load_media

        return load_media(path, self.tokenizer, self._plain, self.shown, self.hyper.width)

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *exc: object) -> None:
        self.gguf.close()
        if self.media is not None:
            self.media.gguf.close()

    def new_cache(
        self,
        length: int | None = None,
        keys: str = "F16",
        values: str = "F16",
        scales: Mapping[str, float] | None = None,
    ) -> Cache:
        """An empty cache.

        Parameters
        ----------
        length : tokens that fit; by default what the model was trained on.
        keys, values : their types, of `runtime.kv.types.TYPES`: F32, F16, Q8_0 …
        scales : of adapters, with which it will be filled: see `adapt`.

        Raises
        ------
        UsageError : the length is not positive, or larger than the table of learned positions; or the heads do not
            divide into blocks of the type.
        """
        length = self.hyper.context_length if length is None else length
        if length < 1:
            raise UsageError(f"a context must have room for at least 1 token, not {length}")
        positions = self.weights.positions
        if positions and length > positions:
            raise UsageError(f"the model has learned {positions} positions; a context of {length} tokens is too long")
        types = CacheSpec(keys, values)
        return Cache(functools.partial(self._layers, types), length, self.cache_kind(keys, values, scales))

    def adapt(self, scales: Mapping[str, float] | None = None) -> None:
        """From now on run with the adapters at these scales.

        Parameters
        ----------
        scales : name of an adapter → its scale; those left out count for nothing. None for the scales that the model
            was loaded with.

        Raises
        ------
        UsageError : there is no adapter of a name.
        """
        chosen = self.scales(scales)
        if not any(chosen):
            self.ops = self._plain
            return
        if chosen not in self._adapted:
            vectors = self.weights.embedding, self._vectors
            self._adapted[chosen] = cast(Ops, AdaptedOps(self._plain, chosen, vectors))
        self.ops = self._adapted[chosen]

    def scales(self, scales: Mapping[str, float] | None = None) -> tuple[float, ...]:
        """The scale of each adapter: see `adapt`."""
        if scales is None:
            return tuple(adapter.scale for adapter in self.adapters)
        names = [adapter.name for adapter in self.adapters]
        if unknown := [name for name in scales if name not in names]:
            have = f"there are {', '.join(map(printable, names))}" if names else "the model was loaded without any"
            raise UsageError(f"there is no adapter {printable(unknown[0])}; {have}")
        return tuple(float(scales.get(name, 0.0)) for name in names)

    def cache_kind(self, keys: str = "F16", values: str = "F16", scales: Mapping[str, float] | None = None) -> str:
        """What caches with the same bytes for the same tokens have in common: see `Cache`."""
        kind = f"{self._fingerprint} {type(self._plain).__name__} {keys.upper()} {values.upper()}"
        chosen = zip(self.adapters, self.scales(scales), strict=True)
        return " ".join([kind, *(f"{adapter.digest} {scale!r}" for adapter, scale in chosen if scale)])

    def _layers(self, types: CacheSpec, length: int) -> list[Any]:
        """A cache's layers, empty."""
        try:
            return [mixer.memory(self.ops, types, length) for mixer in self.weights.slots]
        except (MemoryError, ValueError):
            raise UsageError(f"there is no memory for a context of {length} tokens; take a shorter one") from None

    @functools.cached_property
    def _fingerprint(self) -> str:
        """Tells models apart whose caches have the same shape: a hash of names, shapes, types and first rows."""
        digest = hashlib.sha256(repr(self.hyper).encode())
        for tensor in self.gguf.tensors.values():
            digest.update(f"{tensor.name} {tensor.shape} {tensor.format.name}".encode())
            digest.update(tensor.read(0, min(1, tensor.rows)).tobytes())
        return digest.hexdigest()

    def forward(
        self, tokens: Sequence[int] | np.ndarray, cache: Cache, logits: str | int | None = "last"
    ) -> np.ndarray:
        """Run tokens that follow those in the cache, and put them into it.

        Parameters
        ----------
        tokens : (n,) whole numbers.
        cache : of `new_cache`.
        logits : of the ``"last"`` token, of ``"all"``, of the last so many, or of None.

        Returns
        -------
        array of shape (vocabulary,) for ``"last"``, else (n, vocabulary), float32

        Raises
        ------
        UsageError : there are no tokens, one is no token of this model, or they do not fit into the cache.
        """
        return self.step([Piece(cache, tokens, logits)])[0]

    def read(self, tokens: Sequence[int] | np.ndarray, cache: Cache) -> None:
        """Let the encoder of a model that has one read a text: see `runtime.encoder.read`."""
        from ggufkit.runtime.encoder import read

        if self.weights.encoder is None:
            raise UsageError(f"{printable(self.gguf.path)} has no encoder that could read for it")
        read(self, tokens, cache)

    def answered(self, tokens: Sequence[int], cache: Cache) -> list[int]:
        """What an answer follows: the tokens themselves, or, once an encoder has read them, its first token."""
        if self.weights.encoder is None:
            return list(tokens)
        self.read(tokens, cache)
        return [self.weights.encoder.start]

    def step(self, pieces: Sequence[Piece]) -> list[np.ndarray]:
        """Run tokens of several conversations in one pass over the weights: see `runtime.batch.step`."""
        self._require_output()
        if self.graph.diffusion:
            raise UsageError(f"{printable(self.gguf.path)} writes by diffusion, not token by token, as is needed here")
        return step(self, pieces)

    @property
    def expert_share(self) -> float:
        """Which part of its experts a token goes through."""
        keys = self.hyper.keys
        return keys.count("expert_used_count", 1) / keys.count("expert_count", 1)

    # -- text -------------------------------------------------------------------------------------------------

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The file's tokenizer."""
        from ggufkit.tokenizer.run.tokenizer import load_tokenizer

        return load_tokenizer(self.gguf)

    @functools.cached_property
    def grammars(self) -> Grammars:
        """What keeps texts to a grammar.

        Raises
        ------
        MissingDependency : llguidance is not installed.
        """
        from ggufkit.runtime.constrain.matcher import Grammars

        return Grammars(self.tokenizer, self.vocabulary)

    def context(self, length: int | None = None, tokens: int = 0) -> int:
        """Tokens of a context: `length`, or else 4096 or `tokens` if more, up to what the model was trained on."""
        return min(self.hyper.context_length, max(CONTEXT, tokens)) if length is None else length

    def chat_tokens(self, text: str, media: Sequence[File] = (), marker: str = MARKER) -> list[int]:
        """The tokens of a text that a chat template made; without a second BOS if the template wrote one."""
        vocab = self.tokenizer.vocab
        bos = "" if vocab.bos is None else vocab.texts[vocab.bos]
        return self.tokens(text, media, add_special=not (bos and text.startswith(bos)), marker=marker)

    def tokens(
        self, text: str, media: Sequence[File] = (), *, add_special: bool = True, marker: str = MARKER
    ) -> list[int]:
        """The tokens of a text with images and sound in it.

        Parameters
        ----------
        media : files, or their bytes, for the places that markers have in the text; those without one come first.
        add_special : put BOS and EOS where the vocabulary wants them.
        marker : what stands in their places.

        Raises
        ------
        UsageError : the model was loaded without `mmproj`, a file is not one that can be read, or there are too many
            markers.
        MissingDependency : Pillow, for images, is not installed.
        """
        if not media:
            return self.tokenizer.encode(text, add_special=add_special)
        if self.media is None:
            raise UsageError(
                f"{printable(self.gguf.path)} was loaded without encoders of images and sound",
                "give their file with {mmproj}",
            )
        files = [file if isinstance(file, bytes) else read_small(file, MOST_BYTES) for file in media]
        return self.media.prompt(text, files, add_special, marker)

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        context: int | None = None,
        cache: Cache | None = None,
        types: tuple[str, str] = ("F16", "F16"),
        show_special: bool = False,
        ignore_ends: bool = False,
        grammar: Grammar | None = None,
        ahead: Callable[[int], Ahead | None] | None = None,
        media: Sequence[File] = (),
        passes: int | None = None,
        **sampling: Any,
    ) -> Generation | Diffusion:
        """Text that continues the prompt, piece by piece: iterate over what is returned.

        Parameters
        ----------
        prompt : text, or token ids.
        max_tokens, stop, cache, show_special, ignore_ends : see `runtime.generate.Generation`.
        types : of keys and values, without a `cache`.
        context : tokens that fit, without a `cache`. By default 4096, or what a longer prompt needs, up to what the
            model was trained on.
        grammar : what the text must obey.
        ahead : gives what guesses tokens in a context of so many, or None; the text stays the same: ``lambda n:
            Ahead(Lookup())``. See `runtime.speculate`.
        media : images and sound, files or their bytes, for the markers ``<__media__>`` in the prompt; see `tokens`.
        passes : of models that write by diffusion, over 32 tokens: see `runtime.diffusion`.
        sampling : settings of `runtime.sampling.Sampling`: `temperature`, `top_k`, `seed`, …

        Raises
        ------
        UsageError : the prompt is empty or too long, a setting is out of its range, or the grammar cannot be compiled.
        MissingDependency : llguidance, which the grammar needs, is not installed.
        """
        from ggufkit.runtime.generate import Generation, prompt_tokens
        from ggufkit.runtime.sampling import sampling_of

        self._require_output()
        if media and isinstance(prompt, str):
            prompt = self.tokens(prompt, media)
        tokens = prompt_tokens(self.tokenizer, prompt)
        if self.graph.diffusion:
            from ggufkit.runtime.diffusion import diffused

            how: dict[str, Any] = {"show_special": show_special, "ignore_ends": ignore_ends, "passes": passes}
            how |= {"sampling": sampling_of(self.gguf, **sampling), "max_tokens": max_tokens, "stop": stop}
            return diffused(self, tokens, cache.length if cache is not None else context, grammar, ahead, **how)
        if passes is not None:
            raise UsageError("passes are of models that write by diffusion; this one writes a token after the other")
        if cache is None:
            more = CONTEXT // 4 if max_tokens is None else max_tokens
            cache = self.new_cache(self.context(context, len(tokens) + more), *types)
        if self.weights.encoder is not None:
            tokens = self.answered(tokens, cache)
        return Generation(
            self,
            self.tokenizer,
            tokens,
            cache=cache,
            max_tokens=max_tokens,
            sampling=sampling_of(self.gguf, **sampling),
            stop=stop,
            show_special=show_special,
            ignore_ends=ignore_ends,
            constraint=None if grammar is None else self.grammars.start(grammar),
            ahead=None if ahead is None else ahead(cache.length),
        )

    def embed(self, tokens: Sequence[int] | np.ndarray, pooling: str | None = None) -> np.ndarray:
        """The vector of a text, not normalised; with pooling ``"none"`` one of each token, (n, width).

        Parameters
        ----------
        pooling : mean, cls, last or none; or rank, what the model's classification head says, (outputs,). By default
            the model's own.

        Raises
        ------
        UsageError : the text is empty or too long, or the model has no classification head.
        """
        return embeddings(self, [tokens], pooling)[0]

    def embed_all(self, texts: Iterable[Text], pooling: str | None = None) -> Iterator[np.ndarray]:
        """The vectors of texts, as `embed` gives them; short ones go through the model together."""
        for run in together(texts):
            yield from embeddings(self, run, pooling)

    def pair_tokens(self, query: str, document: str) -> list[int]:
        """The tokens by which the model's head judges how well a document answers a query: ``embed(…, "rank")``."""
        from ggufkit.runtime.ranking import pair_tokens

        return pair_tokens(self.tokenizer, query, document, self.gguf.metadata.get("tokenizer.chat_template.rerank"))

    def _require_output(self) -> None:
        if self.weights.output is None:
            raise UsageError(f"{printable(self.gguf.path)} makes embeddings and no text; use embed")

    def checked(self, tokens: Sequence[int] | np.ndarray) -> np.ndarray:
        """Tokens as (n,) int32; at least one, and all of this model. Where something was seen, as int64."""
        try:
            ids = np.asarray(tokens, np.int64)
        except OverflowError:
            raise UsageError(f"a number is no token of this model, which has {self.vocabulary}") from None
        if ids.ndim != 1 or not ids.size:
            raise UsageError("there is no token to run; give a prompt that is not empty")
        bad = ids >= self.vocabulary
        if bad.any():
            raise UsageError(f"{ids[bad.argmax()]} is no token of this model, which has {self.vocabulary}")
        seen = ids[ids < 0]
        for token in seen:
            self.shown.find(int(token))
        return ids if seen.size else ids.astype(np.int32)


def _mapped(gguf: GGUF, tensor: Tensor) -> Tensor:
    """The tensor, read where the file is mapped into memory."""
    blocks = gguf.mapped(tensor.name)
    return replace(tensor, read=lambda lo, hi: blocks[lo:hi])


def load(
    path: str | os.PathLike[str],
    *,
    threads: int | None = None,
    backend: str | Ops = "auto",
    as_ggml: bool = False,
    lora: Sequence[tuple[str | os.PathLike[str], float]] = (),
    mmproj: str | os.PathLike[str] | None = None,
) -> Model:
    """Open a GGUF file to run it.

    Parameters
    ----------
    threads : how many; default GGUFKIT_THREADS or all CPUs.
    backend : ``"cpu"``, ``"mlx"``, or ``"auto"``: MLX on Apple Silicon, the CPU elsewhere; or operations of one's own.
    as_ggml : on the CPU, activations are rounded where GGML's products of F16 and BF16 round them.
    lora : GGUF files of LoRA adapters, and the scale of each.
    mmproj : the GGUF file of the encoders with which the model sees or hears.

    Raises
    ------
    FileError, GGUFError : the file cannot be read or is malformed.
    ArchitectureError : the architecture is not known or cannot be run, or a tensor or hyperparameter is missing.
    MissingDependency : MLX is asked for and not installed.
    """
    gguf = open_gguf(path)
    try:
        if (other := other_kind(gguf)) is not None:
            what, todo = other
            raise GGUFError(f"this is {what}, not a model", gguf.path, hint=todo)
        if "general.architecture" not in gguf.fields:
            raise GGUFError("the key general.architecture is missing, so it is not a model that can be run", gguf.path)
        ops = make_ops(backend, gguf, threads, as_ggml=as_ggml) if isinstance(backend, str) else backend
        return Model(gguf, ops, lora, mmproj)
    except BaseException:
        gguf.close()
        raise


def normalized(vectors: np.ndarray, power: int = 2) -> np.ndarray:
    """Vectors (…, width) divided by their norm; a vector of zeros stays.

    Parameters
    ----------
    power : of the norm; 0 makes the greatest number 32760, -1 changes nothing.

    Source: `common_embd_normalize` in common/common.cpp of llama.cpp.
    """
    if power < 0:
        return vectors
    absolute = np.abs(vectors).astype(np.float64)
    if power == 0:
        norm = absolute.max(axis=-1, keepdims=True) / 32760
    else:
        norm = (absolute**power).sum(axis=-1, keepdims=True) ** (1 / power)
    return (vectors / np.where(norm > 0, norm, 1)).astype(np.float32)
