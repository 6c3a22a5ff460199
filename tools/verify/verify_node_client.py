#!/usr/bin/env python3
"""The server as OpenAI's library for Node sees it; npm fetches it into a folder that goes away.

python tools/verify/verify_node_client.py model.gguf            # a model with a chat template
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1] / place) for place in ("tests/models", "tools")]

import plain_errors
from served import serving


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    model = parser.parse_args().model
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund", "openai"], cwd=folder, check=True)
        shutil.copy(HERE / "openai_client.mjs", folder)
        with serving(model, {"context": 2048}) as url:
            return subprocess.run(
                ["node", "openai_client.mjs", f"{url}/v1", "tiny"], cwd=folder, check=False, timeout=300
            ).returncode


if __name__ == "__main__":
    plain_errors.run(main)
