"""Damage files of one kind at random, show them to their readers, and print how each ended.

    python -m tools.fuzz adapters --count 2000 --seed 1     (the table, and the first faults)
    python -m tools.fuzz adapters --seed 1 --only 137       (one trial again, with all that it said)

Exits with 1 when a trial ended raw, half-written or silently in numbers that aren't finite.
"""

from __future__ import annotations

import argparse

from tools.fuzz.frame import TARGETS, run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--count", type=int, default=500, help="how many inputs are damaged (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="where the randomness comes from (default: %(default)s)")
    parser.add_argument("--only", type=int, metavar="NUMBER", help="this trial alone")
    parser.add_argument("--show", type=int, default=20, help="how many faults are printed (default: %(default)s)")
    args = parser.parse_args()
    report = run(args.target, args.count, args.seed, only=args.only)
    print(report.table())
    print(f"\nthe slowest input took {report.slowest:.2f} s")
    lines = report.faults() if args.only is None else [f"#{number} {trial}" for number, trial in report.trials]
    for line in lines[: args.show]:
        print(line[:300])
    return int(bool(report.faults("raw", "half-written", "silent, not finite")))


if __name__ == "__main__":
    raise SystemExit(main())
