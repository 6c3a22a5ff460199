"""Make `fixtures/encoders.json`: what llama.cpp's converter makes of the encoders of `tests/models/tiny_encoders.py`.

    python tools/generate/make_encoder_goldens.py LLAMA_CPP

LLAMA_CPP is a checkout of llama.cpp; its converter needs PyTorch and transformers, which this environment must have.
That of October 2026 gives the vision tower of Qwen3-Omni a prefix that it does not know itself: here it goes without.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), *(str(ROOT / place) for place in ("tests/models", "tests/oracles"))]

from tiny_checkpoints import write
from tiny_encoders import ENCODERS, digest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("llama_cpp", type=Path)
    llama_cpp = parser.parse_args().llama_cpp
    sys.path[:0] = [str(llama_cpp), str(llama_cpp / "gguf-py")]
    import conversion
    import torch
    from conversion.base import ModelType, get_model_architecture
    from gguf import LlamaFileType

    omni = conversion.get_model_class("Qwen3OmniMoeForConditionalGeneration", mmproj=True)
    plain = omni.modify_tensors
    omni.modify_tensors = lambda self, data, name, bid: plain(
        self, data, name.replace("thinker.visual.", "visual."), bid
    )
    found = {}
    for name, make in ENCODERS.items():
        with tempfile.TemporaryDirectory() as scratch:
            folder, out = Path(scratch) / "hf", Path(scratch) / "out.gguf"
            write(make(), folder)
            values = conversion.ModelBase.load_hparams(folder, False)
            which = get_model_architecture(values, ModelType.MMPROJ)
            with torch.inference_mode():
                conversion.get_model_class(which, mmproj=True)(folder, LlamaFileType.MOSTLY_F16, out).write()
            found[name] = digest(out, name)
    (ROOT / "fixtures" / "encoders.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
