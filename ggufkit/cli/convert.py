"""`ggufkit convert`: a Hugging Face checkpoint to GGUF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ggufkit.cli.common import SIZE, echo_table
from ggufkit.cli.precision import checkpoint_type, inexact_option, output_options, precision_options, run
from ggufkit.errors import UsageError

__all__ = ["command"]

_LIST = "Show the architectures that can be converted."


def _echo_known(context: click.Context, option: click.Parameter, wanted: bool) -> None:
    """Architectures and the classes that name them in config.json."""
    if not wanted or context.resilient_parsing:
        return
    from ggufkit.arch.projectors import known_projectors
    from ggufkit.arch.registry import known_models

    classes: dict[str, list[str]] = {}
    for model, specs in known_models().items():
        for spec in specs:
            classes.setdefault(spec.name, []).append(model)
    classes["clip (--mmproj)"] = sorted(known_projectors())
    echo_table(((name, ", ".join(classes[name])) for name in sorted(classes)), ("architecture", "in config.json"))
    context.exit()


@click.command()
@click.argument("checkpoint")
@click.option("-o", "--outfile", type=click.Path(path_type=Path), help="The file to write; {ftype} becomes the type.")
@click.option(
    "--type",
    "--outtype",
    "type_",
    metavar="TYPE",
    help="The type to write: F32, F16, BF16, Q8_0, Q4_K_M and all of quantize's. "
    "Default: auto, 16 bits as the checkpoint has them.",
)
@precision_options
@inexact_option
@click.option("--pre", metavar="NAME", help="The pre-tokenizer, by llama.cpp's name, where it is not recognised.")
@click.option(
    "--metadata",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="JSON file of general.* keys, which win over the model card.",
)
@click.option("--model-name", metavar="NAME", help="The model's name.")
@click.option(
    "--base",
    metavar="CHECKPOINT",
    help="The base model of a LoRA adapter, or the model that a draft is for; config and tokenizer are read.",
)
@click.option("--vocab-only", is_flag=True, help="Write only the vocabulary and the hyperparameters.")
@click.option(
    "--split-max-size",
    type=SIZE,
    default=0,
    metavar="SIZE",
    help="Write several files of at most this size, such as 2G or 500M.",
)
@click.option(
    "--split-max-tensors",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Write several files of at most N tensors each.",
)
@click.option(
    "--mmproj", is_flag=True, help="Write the encoders of images and sound, as mmproj-….gguf, not the language model."
)
@click.option("--no-mtp", is_flag=True, help="Leave out the blocks that predict further tokens.")
@output_options
@click.option("--list", is_flag=True, is_eager=True, expose_value=False, callback=_echo_known, help=_LIST)
def command(
    checkpoint: str,
    outfile: Path | None,
    type_: str | None,
    precision: dict[str, Any],
    inexact: str | None,
    pre: str | None,
    metadata: Path | None,
    model_name: str | None,
    base: str | None,
    vocab_only: bool,
    mmproj: bool,
    no_mtp: bool,
    split_max_size: int,
    split_max_tensors: int,
    **options: Any,
) -> None:
    """Convert CHECKPOINT, a folder with config.json, safetensors and a tokenizer, to GGUF.

    CHECKPOINT may also be hf://owner/repo: the weights are then read from the Hugging Face hub as they are needed. Or a
    folder with a LoRA adapter of PEFT, with its base model's folder as --base; so have models that draft for another
    (EAGLE 3, DFlash, DSpark) that one's.

    The weights go straight to TYPE in one pass, a few rows at a time. Without -o the file is named after the model
    and lies in the checkpoint's folder. The options that choose types are those of `ggufkit quantize`.

    A run that was stopped continues where it was when it is started again.

    \b
    ggufkit convert Llama-3.2-1B -o llama.gguf --type Q4_K_M
    ggufkit convert Llama-3.2-1B --type IQ3_XXS --imatrix imatrix.gguf --split-max-size 2G
    ggufkit convert hf://meta-llama/Llama-3.2-1B -o llama.gguf --type Q4_K_M
    ggufkit convert my-adapter --base Llama-3.2-1B -o adapter.gguf
    ggufkit convert gemma-3-4b-it --mmproj
    ggufkit convert --list
    """
    from ggufkit.jobs.adapter import adapter_conversion, is_adapter
    from ggufkit.jobs.convert import conversion

    if is_adapter(checkpoint):
        others = vocab_only or mmproj or no_mtp or split_max_size or split_max_tensors
        if others or pre or inexact or any(precision.values()):
            raise UsageError("of an adapter only --type, --base, --metadata and --model-name can be chosen")
        job = adapter_conversion(
            checkpoint, outfile, type_ or "F32", base=base, metadata=metadata, model_name=model_name
        )
        return run(job, **options)
    type = checkpoint_type(type_, precision)
    job = conversion(
        checkpoint,
        outfile,
        type,
        split_max_size=split_max_size,
        split_max_tensors=split_max_tensors,
        pre=pre,
        metadata=metadata,
        model_name=model_name,
        vocab_only=vocab_only,
        mmproj=mmproj,
        mtp=not no_mtp,
        inexact=inexact,
        base=base,
    )
    return run(job, **options)
