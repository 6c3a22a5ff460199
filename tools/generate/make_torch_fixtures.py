#!/usr/bin/env python3
"""Make fixtures/torch: small files of torch.save in every layout that checkpoints come in.

    pip install torch && python tools/generate/make_torch_fixtures.py

The values are those of `tests/test_checkpoint_torch.py`; PyTorch is needed here only.
"""

from pathlib import Path

import torch
from torch import nn

FOLDER = Path(__file__).parents[2] / "fixtures" / "torch"


def state():
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    return {
        "plain": base.clone(),
        "transposed": base.clone().t(),
        "every_other_row": base[::2],
        "every_other_column": base[:, ::2],
        "inner": base[1:3, 2:5],
        "permuted": torch.arange(24, dtype=torch.float32).reshape(2, 3, 4).permute(2, 0, 1),
        "tied": base,
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 3),
        "parameter": nn.Parameter(torch.ones(2, 2)),
        "half": torch.arange(4, dtype=torch.float16),
        "bfloat16": torch.arange(4, dtype=torch.bfloat16),
        "double": torch.arange(4, dtype=torch.float64),
        "long": torch.arange(4),
        "bool": torch.tensor([True, False]),
        "a number": 3,
    }


def main():
    FOLDER.mkdir(parents=True, exist_ok=True)
    torch.save(state(), FOLDER / "zip.bin")
    torch.save(state(), FOLDER / "legacy.bin", _use_new_zipfile_serialization=False)
    torch.save(state(), FOLDER / "protocol4.bin", pickle_protocol=4)
    torch.manual_seed(0)
    torch.save(nn.Linear(3, 2).state_dict(), FOLDER / "module.bin")
    torch.save(
        {"float8": torch.arange(4).to(torch.float8_e4m3fn), "u16": torch.arange(4).to(torch.uint16)}, FOLDER / "v3.bin"
    )


if __name__ == "__main__":
    main()
