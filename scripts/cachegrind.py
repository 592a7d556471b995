#!/usr/bin/env python3
"""Memory traffic a token of any command, by valgrind's cachegrind: two runs, differenced.

    python3 scripts/cachegrind.py [--ll 33554432,16,64] [--tokens 4,20] -- COMMAND ... {n} ...

The command runs twice, with each token count where {n} stands; what does not depend on the count,
such as loading, cancels out. Reported are the lines that the last level misses, times their length:
reads of data and instructions (what DRAM is read for), and stores (which read the line first).
Valgrind runs threads one at a time and has no AVX-512. An access that lies on two lines is one miss
at most, so what a program reads across lines may be more than this says. Examples, ours and
llama.cpp's:

    ... -- aios bench -m MODEL -p 0 -n {n} -r 1 -t 1 --isa avx2 --no-bandwidth
    ... -- aios bench -m MODEL -p 0 -n {n} -r 1 -t 1 --isa avx2 --no-bandwidth --pass 4
    ... -- llama-bench -m MODEL -p 0 -n {n} -r 1 -t 1 --no-warmup
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

# The first levels of a common desktop processor: 32 KiB of 8 ways.
FIRST = "32768,8"


def numbers(text, count):
    """A list of integers that are not negative, as `33554432,16,64`."""
    parts = [int(part) for part in text.split(",")]
    if len(parts) != count or min(parts) < 0:
        raise ValueError(f"{text!r} is no list of {count} numbers")
    return parts


def two_counts(text):
    """Two token counts, the second larger."""
    counts = numbers(text, 2)
    if counts[1] <= counts[0]:
        raise ValueError(f"of {text!r} the second number must be the larger one")
    return counts


def parse_summary(text):
    """The events of a cachegrind output file and their sums."""
    found = {}
    for line in text.splitlines():
        key, _, rest = line.partition(":")
        if key in ("events", "summary"):
            found[key] = rest.split()
    if not {"events", "summary"} <= found.keys() or len(found["events"]) != len(found["summary"]):
        raise ValueError("cachegrind's file has no summary")
    return dict(zip(found["events"], map(int, found["summary"])))


def run(command, ll, quiet=True):
    """The events of one run of a command, a list of words, behind the last level `ll`."""
    if not shutil.which("valgrind"):
        sys.exit("error: valgrind is not installed; on Debian and Ubuntu: apt-get install valgrind")
    size, ways, line = ll
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        valgrind = ["valgrind", "--tool=cachegrind", "--cache-sim=yes"]
        valgrind += [f"--I1={FIRST},{line}", f"--D1={FIRST},{line}", f"--LL={size},{ways},{line}"]
        valgrind += [f"--cachegrind-out-file={out}", *command]
        done = subprocess.run(valgrind, capture_output=quiet, text=True, check=False)
        if done.returncode != 0 or not out.exists():
            sys.exit(f"error: {' '.join(valgrind)} ended with {done.returncode}:\n{done.stderr}")
        return parse_summary(out.read_text())


def measure(command, ll, counts, per_count=1):
    """Bytes and instructions a token: the difference of the runs of two counts."""
    if not any("{n}" in word for word in command):
        sys.exit("error: the command needs {n} where the number of tokens goes")
    runs = []
    for count in counts:
        runs.append(run([word.replace("{n}", str(count)) for word in command], ll))
    tokens = (counts[1] - counts[0]) * per_count
    line = ll[2]
    of = {event: (runs[1][event] - runs[0][event]) / tokens for event in runs[0]}
    return {
        "read_bytes_per_token": (of["DLmr"] + of["ILmr"]) * line,
        "store_bytes_per_token": of["DLmw"] * line,
        "instructions_per_token": of["Ir"],
        "tokens": list(counts),
        "ll": list(ll),
        "runs": runs,
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ll", default="33554432,16,64", help="SIZE,WAYS,LINE of the last level")
    parser.add_argument("--tokens", default="4,20", help="the two counts that replace {n}")
    parser.add_argument("--per-pass", type=int, default=1, help="tokens that a count stands for")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("command", nargs="+", help="after --: what to run, with {n}")
    args = parser.parse_args()
    try:
        ll, counts = numbers(args.ll, 3), two_counts(args.tokens)
    except ValueError as error:
        parser.error(str(error))
    if args.per_pass < 1:
        parser.error("--per-pass must be positive")
    found = measure(args.command, ll, counts, args.per_pass)
    if args.json:
        print(json.dumps({"command": args.command, **found}, indent=2))
        return
    reads, stores = found["read_bytes_per_token"], found["store_bytes_per_token"]
    print(f"reads        {reads / 1e6:12.4f} MB/token")
    print(f"for stores   {stores / 1e6:12.4f} MB/token")
    print(f"instructions {found['instructions_per_token'] / 1e6:12.4f} M/token")


if __name__ == "__main__":
    main()
