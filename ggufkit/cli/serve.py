"""`ggufkit serve`: models behind HTTP, for the clients that people have."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ggufkit.cli.common import Size
from ggufkit.cli.media import mmproj_option
from ggufkit.cli.progress import note
from ggufkit.cli.prompt import runtime_options
from ggufkit.cli.speculate import lora_option
from ggufkit.cli.text import cache_options
from ggufkit.errors import MissingDependency, UsageError, printable
from ggufkit.storage.regular import read_small

if TYPE_CHECKING:
    from ggufkit.serve.settings import Settings

__all__ = ["command"]

_SMALL = 1 << 20  # bytes of a file with keys, or a template


@click.command()
@click.argument("models", metavar="[MODEL]…", nargs=-1)
@click.option(
    "--models-dir", type=click.Path(file_okay=False, path_type=Path), help="Serve the models in this folder, too."
)
@click.option(
    "--models-max", type=click.IntRange(min=1), default=4, show_default=True, help="Models in memory at once, at most."
)
@click.option("--memory", type=Size(), help="Memory of all models with their caches; whoever was used last stays.")
@click.option(
    "--idle", type=click.FloatRange(min=1), metavar="SECONDS", help="Unload a model that nobody has used so long."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="The port; 0: any.")
@click.option("--api-key-file", type=click.Path(path_type=Path), help="A file with keys, one a line; clients need one.")
@click.option(
    "--allowed-host", "hosts", multiple=True, metavar="NAME", help="A name that the server may be called by, too."
)
@click.option("--cors-origin", "origins", multiple=True, metavar="ORIGIN", help="Pages of this origin may ask.")
@click.option("-c", "--ctx-size", type=int, default=0, help="Tokens of a request. Default: the model's, up to 4096.")
@click.option(
    "-np", "--parallel", type=click.IntRange(1, 256), default=4, show_default=True, help="Requests worked on at once."
)
@click.option(
    "--queue", type=click.IntRange(min=0), default=64, show_default=True, help="Requests that wait; more are refused."
)
@cache_options
@click.option(
    "--cache-ram",
    type=Size(0),
    default="1G",
    show_default=True,
    help="Memory of caches kept for prompts that begin alike.",
)
@click.option(
    "--slot-save-path",
    type=click.Path(file_okay=False, path_type=Path),
    help="Read these caches from this folder at the start, and write them there at the end.",
)
@click.option("-md", "--model-draft", "draft", metavar="FILE", help="A small model that guesses ahead.")
@click.option("--lookup", is_flag=True, help="Guess what followed in the text before: for code that is edited.")
@click.option("--chat-template-file", type=click.Path(path_type=Path), help="Use this Jinja template for all models.")
@click.option("--slots", is_flag=True, help="Show at /slots what is worked on.")
@click.option("--metrics", is_flag=True, help="Count at /metrics, for Prometheus.")
@runtime_options
@lora_option
@mmproj_option
def command(
    models: tuple[str, ...],
    models_dir: Path | None,
    models_max: int,
    memory: int | None,
    idle: float | None,
    host: str,
    port: int,
    api_key_file: Path | None,
    hosts: tuple[str, ...],
    origins: tuple[str, ...],
    ctx_size: int,
    parallel: int,
    queue: int,
    types: tuple[str, str],
    cache_ram: int,
    slot_save_path: Path | None,
    draft: str | None,
    lookup: bool,
    chat_template_file: Path | None,
    slots: bool,
    metrics: bool,
    on: dict[str, Any],
) -> None:
    """Serve each MODEL to clients of OpenAI's, Anthropic's, ollama's and llama.cpp's servers.

    A model is called by its file's name, or as NAME=FILE says; clients that name none get the first. A chat page is at
    the server's address. Other machines can ask only where --host and --api-key-file say so. Ctrl-C lets answers
    finish; twice, it ends at once.

    \b
    ggufkit serve model.gguf
    ggufkit serve small=model.gguf bge-small.gguf --port 9000 --lookup
    ggufkit serve --models-dir ~/models --memory 12G --idle 600
    ggufkit serve model.gguf --host 0.0.0.0 --api-key-file keys.txt
    """
    try:
        from ggufkit.serve.server import Server
    except ImportError as e:
        if e.name is None or e.name.startswith("ggufkit"):
            raise
        raise MissingDependency(f"serving needs the package {e.name}: pip install 'ggufkit[serve]'") from None
    from ggufkit.cli.ahead import ready_to_run
    from ggufkit.memory.fit import fit
    from ggufkit.runtime.model import load
    from ggufkit.serve.engine import Engine, ModelPool
    from ggufkit.serve.settings import Settings

    template = None if chat_template_file is None else _text(chat_template_file)
    settings = Settings(
        host=host,
        port=port,
        keys=_keys(api_key_file),
        hosts=hosts,
        origins=origins,
        slots=slots,
        metrics=metrics,
        template=template,
        slot_folder=slot_save_path,
    )
    files = _named(models, models_dir)
    if on["lora"] and len(files) > 1:
        raise UsageError(f"an adapter is for one model, and there are {len(files)}; serve the one that it is for")
    if on["mmproj"] and len(files) > 1:
        raise UsageError(f"encoders are for one model, and there are {len(files)}; serve the one that they are for")
    _require_extra()
    how: dict[str, Any] = {
        "context": ctx_size or None,
        "slots": parallel,
        "queue": queue,
        "types": types,
        "cache_ram": cache_ram,
        "cache_folder": slot_save_path,
        "lookup": lookup,
        "draft": None if draft is None else partial(load, draft, **{**on, "lora": (), "mmproj": None}),
    }

    def start(path: Path) -> Engine:
        ready_to_run(str(path), on, types)
        return Engine(partial(load, path, **on), **how)

    def size(path: Path) -> int:
        keys, values = types
        takes = fit(path, context=ctx_size or None, slots=parallel, keys=keys, values=values)
        return int(takes.used(0)) + cache_ram

    pool = ModelPool(files, start, size, memory=memory, most=models_max, idle=idle)
    try:
        server = Server(pool, settings)
        with pool.lease(next(iter(files))):  # what is wrong with it is better said now than to the first client
            pass
        server.run(lambda: note(_greeting(server.url, settings, list(files))))
        note("finishing answers")
    finally:
        pool.close(settings.drain)


def _greeting(url: str, settings: Settings, names: list[str]) -> str:
    shown = ", ".join(map(printable, names[:8])) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    key = "" if settings.keys else ", for this machine alone"
    return f"{shown} at {url}{key}; Ctrl-C ends"


def _named(models: tuple[str, ...], folder: Path | None) -> dict[str, Path]:
    """Name → file; those that were named first, then those of a folder."""
    from ggufkit.serve.engine.pool import models_in

    found: dict[str, Path] = {}
    for given in models:
        name, sign, path = given.partition("=")
        if not sign or "/" in name or Path(given).exists():
            name, path = Path(given).stem, given
        if name in found:
            raise UsageError(f"two models are called {printable(name)}; give one another name: other={printable(path)}")
        found[name] = Path(path)
    if folder is not None:
        found = {**found, **models_in(folder), **found}
    if not found:
        raise UsageError("there is no model to serve; name one, or a folder with --models-dir")
    return found


def _text(path: Path) -> str:
    return read_small(path, _SMALL).decode("utf-8", "replace")


def _keys(path: Path | None) -> tuple[str, ...]:
    if path is None:
        return ()
    keys = tuple(line.strip() for line in _text(path).splitlines() if line.strip() and not line.startswith("#"))
    if not keys:
        raise UsageError(f"{printable(path)} has no keys; write one a line")
    return keys


def _require_extra() -> None:
    """Grammars need llguidance: better to say so now than to the first client."""
    try:
        import llguidance  # noqa: F401
    except ImportError:
        raise MissingDependency("serving needs the package llguidance: pip install 'ggufkit[serve]'") from None
