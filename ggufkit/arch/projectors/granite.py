"""What hears in Granite Speech, and sees in Granite 4 Vision."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

from ggufkit.arch.batch_norms import BATCH_EPSILON, batch_norms
from ggufkit.arch.metadata import Row, integers, real, uint
from ggufkit.arch.projector import (
    CONVOLUTIONS,
    USES_GELU,
    Projector,
    audio_keys,
    image_epsilon,
    of_vision,
    projector,
    vision_keys,
)
from ggufkit.arch.transforms import drop, reshape, split_rows
from ggufkit.checkpoint.config import Config
from ggufkit.errors import ArchitectureError, CheckpointError, printable
from ggufkit.tensors.tensor import Tensor

# ---- Granite Speech ---------------------------------------------------------------------------------------------


def _of_encoder(*names: str) -> Callable[[Config], int]:
    return lambda config: config.part("encoder_config").integer(*names)


def _inner(config: Config) -> int:
    return _of_encoder("hidden_dim")(config) * _of_encoder("feedforward_mult")(config)


def _joined_layers(config: Config) -> list[int] | None:
    """Layers whose outputs stand in front of the last one's."""
    encoder = config.part("encoder_config")
    layers = encoder.get("cat_hidden_layers")
    if not layers:
        return None
    expected = encoder.integer("hidden_dim") * (len(encoder.list("cat_hidden_layers")) + 1)
    found = config.part("projector_config").integer("encoder_hidden_size")
    if found != expected:
        raise ArchitectureError(f"config.json: 'encoder_hidden_size' is {found}, the layers together have {expected}")
    result: list[int] = layers
    return result


def _speech(models: tuple[str, ...], *more: Row) -> Projector:
    return Projector(
        models=models,
        keys=(
            *audio_keys(
                width=_of_encoder("hidden_dim"),
                feed_forward=_inner,
                blocks=_of_encoder("num_layers"),
                heads=_of_encoder("num_heads"),
            ),
            projector("granite_speech"),
            uint("/clip.audio.num_mel_bins", _of_encoder("input_dim")),
            real("/clip.audio.attention.layer_norm_epsilon", lambda config: BATCH_EPSILON),
            uint("/clip.audio.chunk_size", _of_encoder("context_size")),
            uint("/clip.audio.conv_kernel_size", _of_encoder("conv_kernel_size")),
            uint("/clip.audio.max_pos_emb", _of_encoder("max_pos_emb")),
            uint("/clip.audio.projector.window_size", lambda config: config.integer("window_size")),
            uint("/clip.audio.projector.downsample_rate", lambda config: config.integer("downsample_rate")),
            uint(
                "/clip.audio.projector.head_count",
                lambda config: config.part("projector_config").integer("num_attention_heads"),
            ),
            *more,
        ),
        transforms=(
            drop(r"attention_dists|num_batches_tracked"),
            batch_norms(counted=False),
            split_rows(r"(?<=\.attn\.)to_kv(?=\.weight)", "to_k", "to_v"),
            reshape(r"\.conv\.(up|down|depth)_conv\.(conv\.)?weight$", _without_ones),
        ),
        types={r"^a\.blk\.\d+\.conv_(dw|pw1|pw2)\.weight": "F32", **CONVOLUTIONS},
        blocks=_of_encoder("num_layers"),
    )


def _without_ones(tensor: Tensor, config: Config) -> tuple[int, ...]:
    """Of convolutions of one channel or one place the matrix."""
    if len(tensor.shape) == 3 and 1 in tensor.shape[1:]:
        return tensor.shape[0], tensor.shape[1] * tensor.shape[2]
    return tensor.shape


# ---- Granite 4 Vision -------------------------------------------------------------------------------------------

_KINDS = "layerwise", "spatial"


def _projectors(config: Config) -> list[tuple[int, str, int]]:
    """The layer that each projector reads, its kind, and its number among those; in the order of the layers behind."""
    layers = config.vision.integer("num_hidden_layers")
    behind = config.part("text_config").integer("num_hidden_layers")

    def counted(layer: object, count: int) -> int:
        if type(layer) is not int or not -count <= layer < count:
            raise ArchitectureError(f"config.json: there is no layer {printable(layer)} of {count}")
        return layer % count if layer < 0 else layer

    found: list[tuple[int, int, str, int]] = []
    pairs = config.get("deepstack_layer_map", default=[])
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise ArchitectureError("config.json: 'deepstack_layer_map' must be pairs of layers")
    for number, (own, target) in enumerate(sorted(pairs)):
        found.append((counted(target, behind), counted(own, layers), "layerwise", number))
    targets = config.get("spatial_target_layers", default=[])
    own = counted(config.get("spatial_vision_layer", default=-1), layers)
    if not isinstance(targets, list):
        raise ArchitectureError("config.json: 'spatial_target_layers' must be a list of layers")
    for number, target in enumerate(targets):
        if type(target) is not int:
            raise ArchitectureError(f"config.json: there is no layer {printable(target)}")
        found.append((target, own, "spatial", number))
    return [entry[1:] for entry in sorted(found, key=lambda entry: entry[0])]


def _side(part: int) -> Callable[[Config], int]:
    """Of ``"4/8"``: rows of queries, and rows of a window that they look at."""

    def find(config: Config) -> int:
        rate = config.require("downsample_rate")
        sides = rate.split("/") if isinstance(rate, str) else []
        if len(sides) != 2 or not all(side.isdecimal() and len(side) < 5 for side in sides):
            raise ArchitectureError(f"config.json: 'downsample_rate' must be such as 4/8, not {printable(repr(rate))}")
        return int(sides[part])

    return find


def _sizes(config: Config) -> list[int] | None:
    """Widths and heights of grids of tiles, one after the other."""
    sizes = config.get("image_grid_pinpoints")
    if not sizes:
        return None
    if not isinstance(sizes, list) or not all(isinstance(size, list) and len(size) == 2 for size in sizes):
        raise ArchitectureError("config.json: 'image_grid_pinpoints' must be heights and widths")
    return [side for height, width in sizes for side in (width, height)]


def _numbered(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
    """Projectors of both kinds, which have one layer each, in one order."""
    order = {(kind, number): i for i, (_, kind, number) in enumerate(_projectors(config))}
    inner = re.compile(r"^model\.(layerwise|spatial)_projectors\.(\d{1,4})\.(?:(.*\.layer\.)\d{1,4}\.)?(.+)$")
    for tensor in tensors:
        found = inner.search(tensor.name)
        if found is None:
            yield tensor
            continue
        kind, number, module, rest = found.groups()
        if (kind, int(number)) not in order:
            raise CheckpointError(f"{printable(tensor.name)} belongs to no layer of config.json")
        place = order[kind, int(number)]
        name = f"{module}{place}" if module else str(place)
        yield tensor.renamed(f"model.{kind}_projectors.{name}.{rest}")


VISION = Projector(
    models=("Granite4VisionForConditionalGeneration",),
    keys=(
        *vision_keys(),
        projector("granite4_vision"),
        image_epsilon("layer_norm_eps", default=1e-6),
        USES_GELU,
        uint("/clip.vision.preproc_image_size", of_vision("image_size", default=384)),
        uint("/clip.vision.projector.query_side", _side(0)),
        uint("/clip.vision.projector.window_side", _side(1)),
        integers("/clip.vision.feature_layer", lambda config: [layer for layer, _, _ in _projectors(config)]),
        integers(
            "/clip.vision.projector.spatial_offsets",
            lambda config: [number if kind == "spatial" else -1 for _, kind, number in _projectors(config)],
        ),
        integers("/clip.vision.image_grid_pinpoints", _sizes),
    ),
    transforms=(drop(r"vision_model\.head|^lm_head"), _numbered),
)

PROJECTORS = (
    _speech(("GraniteSpeechForConditionalGeneration",)),
    _speech(("GraniteSpeechPlusForConditionalGeneration",), integers("/clip.audio.feature_layer", _joined_layers)),
    VISION,
)
