"""Hold every method of the installed PEFT to one contract on the tiny base, and write
assets/measurements/peft_methods.json.

    python -m tools.measure_peft_methods            everything (two CPU cores: half a minute)
    python -m tools.measure_peft_methods --trial    three methods, printed
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
from pathlib import Path

import peft
import torch

from utils.evaluate.peft_methods import LEFT_OUT, contract, methods
from utils.models import load_base

OUT = Path(__file__).resolve().parents[1] / "assets" / "measurements" / "peft_methods.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trial", action="store_true", help="three methods, printed and not written")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    ids = torch.arange(10, 138).reshape(4, 32)
    rows = []
    made = methods()
    for name in list(made)[-3:] if args.trial else made:
        rows.append({"method": name} | contract(lambda: load_base()[0], made[name](), ids)._asdict())
        print(json.dumps(rows[-1]), flush=True)
    record = {
        "what": "each method of PEFT with r = 4, or its defaults, on all linear layers of the tiny base in float32: "
        "change of the logits at the start, trained numbers, merge after a random shake, rank of the change, whether "
        "PEFT converts it to LoRA and which share of its effect on the logits that loses, CPU milliseconds of forward "
        "and backward on 4 x 32 tokens (fastest of eight)",
        "tool": "tools/measure_peft_methods.py", "date": datetime.date.today().isoformat(),
        "hardware": f"{platform.machine()} CPU, one thread, shared with other work", "seed": 0,
        "peft": peft.__version__, "torch": torch.__version__, "rows": rows, "left_out": LEFT_OUT,
    }  # fmt: skip
    if not args.trial:
        args.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
