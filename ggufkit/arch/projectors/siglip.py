"""SigLIP's vision tower, in Gemma 3, SmolVLM, LFM2-VL, MiniCPM-V 4.6, Janus, Phi-4 and Aya Vision."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator

from ggufkit.arch.fits import Grid, Patches, Slices, Square, Stretch, Tiles
from ggufkit.arch.metadata import integers, uint
from ggufkit.arch.projector import (
    BLOCKS,
    CONVOLUTIONS,
    USES_GELU,
    Projector,
    channels_first,
    image_epsilon,
    image_scale,
    named_activation,
    of_vision,
    projector,
    vision_keys,
)
from ggufkit.arch.tower import Activate, Halves, Join, Matrix, Normalize, Resample, Tower
from ggufkit.arch.transforms import drop, norm_plus_one, rename
from ggufkit.checkpoint.config import Config
from ggufkit.errors import ArchitectureError, CheckpointError
from ggufkit.tensors.tensor import Tensor

GEMMA3 = Projector(
    models=("Gemma3ForConditionalGeneration",),
    keys=(
        *vision_keys(),
        projector("gemma3"),
        image_epsilon("layer_norm_eps", default=1e-6),
        USES_GELU,
        uint("/clip.vision.projector.scale_factor", image_scale(of_vision("image_size"), of_vision("patch_size"))),
    ),
    kept=r"^(multi_modal_projector|vision_tower|multimodal_projector|vision_model)\.",
    transforms=(
        drop(r"vision_model\.head\."),
        rename((r"_weight", ".weight")),
        norm_plus_one(r"soft_emb_norm\.weight"),
    ),
    types={r"^mm\.input_projection": "F16", r"^v\.(patch|position)_embd": "F32", **CONVOLUTIONS},
)


def _longest_edge(config: Config) -> int:
    size = config.processor.get("size", default={})
    edge = size.get("longest_edge") if isinstance(size, dict) else None
    return config.vision.integer("image_size") if edge is None else edge


_SMOLVLM = {"hidden_size": 1152, "num_attention_heads": 16, "intermediate_size": 3072}


def _smolvlm(name: str) -> Callable[[Config], int]:
    """SmolVLM 2 leaves out what its class has as a default."""

    def find(config: Config) -> int:
        own = config.vision.get("model_type") == "smolvlm_vision"
        result: int = config.vision.get(name, default=_SMOLVLM[name]) if own else config.vision.require(name)
        return result

    return find


SMOLVLM = Projector(
    models=("Idefics3ForConditionalGeneration", "SmolVLMForConditionalGeneration"),
    keys=(
        *vision_keys(
            width=_smolvlm("hidden_size"),
            feed_forward=_smolvlm("intermediate_size"),
            heads=_smolvlm("num_attention_heads"),
        ),
        projector("idefics3"),
        image_epsilon("layer_norm_eps", default=1e-5),
        uint("/clip.vision.projector.scale_factor", lambda config: config.get("scale_factor", default=2)),
        USES_GELU,
        uint("/clip.vision.preproc_image_size", _longest_edge),
    ),
    kept=r"vision_tower|vision_model|model\.connector",
    types={r"^v\.(patch|position)_embd": "F32", **CONVOLUTIONS},
)


def _lfm2_blocks(config: Config) -> int:
    """Without the layers behind the one whose output is taken, which is counted from the end."""
    dropped = -(config.get("vision_feature_layer", default=-1) + 1)
    result: int = config.vision.integer(*BLOCKS) - dropped
    return result


LFM2_VL = Projector(
    models=("Lfm2VlForConditionalGeneration",),
    keys=(
        *vision_keys(image_size=lambda config: 256, blocks=_lfm2_blocks),
        projector("lfm2"),
        image_epsilon("layer_norm_eps"),
        uint("/clip.vision.projector.scale_factor", lambda config: config.get("downsample_factor", default=2)),
        USES_GELU,
    ),
    transforms=(
        rename((r"model\.(?=(vision_tower|multi_modal_projector)\.)", "")),
        channels_first(r"patch_embedding\.weight"),
    ),
)


def _downsampling(config: Config) -> str:
    mode: str = config.processor.get("downsample_mode", default="16x")
    if mode not in ("4x", "16x"):
        raise ArchitectureError("preprocessor_config.json: 'downsample_mode' must be 4x or 16x")
    return mode


def _slice_size(config: Config) -> int:
    given = "scale_resolution" in config.processor
    return config.processor.integer("scale_resolution") if given else config.vision.integer("image_size")


def _insertion(config: Config) -> list[int]:
    return [config.count("insert_layer_id", default=config.vision.count("insert_layer_id", default=6))]


MINICPM_V = Projector(
    models=("MiniCPMV4_6ForConditionalGeneration",),
    keys=(
        *vision_keys(image_size=_slice_size),
        projector("minicpmv4_6"),
        uint("/clip.vision.projector.scale_factor", lambda config: 2 if _downsampling(config) == "4x" else 4),
        integers("/clip.vision.wa_layer_indexes", _insertion),
        USES_GELU,
        image_epsilon("layer_norm_eps", default=1e-6),
    ),
    transforms=(
        drop(r"^(lm_head\.|mtp)"),
        lambda tensors, config: drop(r"\.vit_merger\." if _downsampling(config) == "4x" else r"(?!)")(tensors, config),
    ),
)


def _janus_inner(config: Config) -> int:
    if "intermediate_size" in config.vision:
        return config.vision.integer("intermediate_size")
    return round(config.vision.integer("hidden_size") * config.vision.number("mlp_ratio"))


def _aligner(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
    """Of ``aligner`` the first matrix, and those that follow it."""
    matcher = re.compile(r"^(?:model\.)?aligner\.(?:fc1|hidden_layers\.(\d{1,4}))\.(.+)$")
    for tensor in tensors:
        if found := matcher.search(tensor.name):
            yield tensor.renamed(f"mm.{int(found[1]) + 1 if found[1] else 0}.{found[2]}")
        else:
            yield tensor


JANUS = Projector(
    models=("JanusForConditionalGeneration",),
    keys=(
        *vision_keys(feed_forward=_janus_inner),
        projector("janus_pro"),
        image_epsilon("layer_norm_eps", default=1e-6),
        named_activation(),
    ),
    kept=r"^(model\.)?(aligner|vision_model)\.",
    transforms=(_aligner,),
)


def _phi4_blocks(config: Config) -> int:
    """Without the last, behind whose input the projector is."""
    layers = config.vision.integer(*BLOCKS)
    if layers < 2:
        raise ArchitectureError(f"config.json: {layers} layers of the encoder are too few, its last is left out")
    return layers - 1


def _phi4_patch(config: Config) -> int:
    return config.processor.integer("patch_size")


def _phi4_pixels(name: str) -> Callable[[Config], int]:
    def find(config: Config) -> int:
        count = config.processor.get(name)
        return (config.integer(name) if count is None else int(count)) * _phi4_patch(config) ** 2

    return find


def _phi4_size(config: Config) -> int:
    """Of a picture that has as many patches as there are positions."""
    end = "vision_model.embeddings.position_embedding.weight"
    table = next((tensor for name, tensor in config.tensors.items() if name.endswith(end)), None)
    side = math.isqrt(table.rows) if table is not None else 0
    if table is None or side * side != table.rows:
        raise CheckpointError("the checkpoint has no position_embedding.weight of a square grid, which Phi-4 has")
    return side * _phi4_patch(config)


def _phi4_last(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
    return drop(rf"\.vision_model\.encoder\.layers\.{_phi4_blocks(config)}\.")(tensors, config)


PHI4 = Projector(
    models=("Phi4ForCausalLMV",),
    keys=(
        *vision_keys(image_size=_phi4_size, patch_size=_phi4_patch, blocks=_phi4_blocks),
        projector("phi4"),
        uint("/clip.vision.image_min_pixels", _phi4_pixels("min_num_patches")),
        uint("/clip.vision.image_max_pixels", _phi4_pixels("max_num_patches")),
        USES_GELU,
        image_epsilon("layer_norm_eps", default=1e-6),
    ),
    kept=r"^(model\.)?(vision_tower|mm_projector)\.",
    transforms=(
        drop(r"\.vision_model\.(head|post_layernorm)\."),
        _phi4_last,
        rename((r"^model\.vision_tower\.vision_tower\.", "vision_tower."), (r"^(model\.)?mm_projector\.", "mm.")),
        channels_first(r"patch_embedding\.weight"),
    ),
    blocks=_phi4_blocks,
)

COHERE2_VISION = Projector(
    models=("Cohere2VisionForConditionalGeneration",),
    keys=(
        *vision_keys(),
        projector("cohere2v"),
        image_epsilon("layer_norm_eps"),
        uint("/clip.vision.projector.scale_factor", lambda config: config.integer("downsample_factor")),
        uint("/clip.vision.preproc_max_tiles", lambda config: config.processor.integer("max_patches")),
        USES_GELU,
    ),
    kept=r"^model\.(vision_tower|multi_modal_projector)\.",
    types={r"^v\.(patch|position)_embd": "F32", **CONVOLUTIONS},
)

PROJECTORS = (GEMMA3, SMOLVLM, LFM2_VL, MINICPM_V, JANUS, PHI4, COHERE2_VISION)

TOWERS = {
    "gemma3": Tower(
        fit=Square("bilinear"),
        positions="table",
        merge=4,
        project=(
            Join("mean"),
            Normalize("mm.soft_emb_norm", "rms"),
            Matrix("mm.input_projection", transposed=True),
        ),
        begin="<start_of_image>",
        end="<end_of_image>",
        whole=lambda width: True,
    ),
    "idefics3": Tower(
        fit=Tiles(
            "lanczos",
            tile="<fake_token_around_image><row_{row}_col_{column}>",
            row_end="\n",
            overview=("\n\n", "<fake_token_around_image>", "<global-img>"),
            overview_end="<fake_token_around_image>",
        ),
        positions="table",
        project=(Join("rows"), Matrix("mm.model.fc")),
    ),
    "lfm2": Tower(
        fit=Grid(
            "bilinear",
            tokens=(64, 256),
            tolerance=2.0,
            size=512,
            tiles=(2, 10),
            tile="<|img_row_{row}_col_{column}|>",
            overview="<|img_thumbnail|>",
        ),
        positions="smoothed",
        project=(
            Join("rows"),
            Normalize("mm.input_norm", "layer", 1e-5, optional=True),
            Matrix("mm.1"),
            Activate("gelu"),
            Matrix("mm.2"),
        ),
        begin="<|image_start|>",
        end="<|image_end|>",
    ),
    "minicpmv4_6": Tower(
        fit=Slices(
            "bicubic",
            most=9,
            overview=("<image>", "</image>"),
            tile=("<slice>", "</slice>"),
            row_end="\n",
        ),
        positions="buckets",
        merge=4,
        middle="v.vit_merger.",
        project=(
            Join("rows"),
            Normalize("mm.input_norm", "layer"),
            Matrix("mm.up"),
            Activate("gelu_erf"),
            Matrix("mm.down"),
        ),
    ),
    "resampler": Tower(  # MiniCPM-V 2.6 to 4.5
        fit=Slices(
            "bicubic",
            most=9,
            overview=("<image>", "</image>"),
            tile=("<slice>", "</slice>"),
            row_end="\n",
        ),
        positions="buckets",
        merge_key="",
        project=(Resample("resampler.", head=128),),
        least=("minicpmv_version", 3),
    ),
    "janus_pro": Tower(
        fit=Square("bicubic", colour=(127, 127, 127)),
        positions="table",
        project=(Matrix("mm.0"), Activate("blocks"), Matrix("mm.1")),
    ),
    "phi4": Tower(
        fit=Patches("bilinear", tokens=None),
        positions="smoothed",
        merge_key="",
        project=(Matrix("mm.0"), Activate("gelu"), Matrix("mm.2")),
    ),
    "cohere2v": Tower(
        fit=Stretch("bicubic", end="<|IMG_LINE_BREAK|>"),
        positions="table",
        project=(Join("rows"), Matrix("mm.1"), Halves(), Matrix("mm.2")),
        begin="<|START_OF_IMG|>",
        end="<|END_OF_IMG|>",
    ),
}
