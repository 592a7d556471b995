#!/usr/bin/env python3
"""Decodes a model that exceeds a limit of memory: aios with --ram beside a peer that maps the file.

Both run under the same memory control group, which is made for it (root, control groups of version
1 or 2), in turns. The peer is any command; {model} in it stands for the file, and the last number
before a plus-minus sign in its output, or the last one at all, is taken as tokens a second.

    python3 scripts/larger_than_memory.py target/release/aios falcon-7b.gguf --limit 3000000000 \\
        --ram 2800M --peer 'llama-bench -m {model} -p 0 -n 4 -r 1 -t 2'
"""

import argparse
import json
import os
import re
import shlex
import statistics
import subprocess
import sys

ROOT = "/sys/fs/cgroup"


class Group:
    """A memory control group with a limit, which is removed at the end."""

    def __init__(self, limit):
        first = os.path.join(ROOT, "memory")
        self.second = not os.path.isdir(first)
        name = f"larger-than-memory-{os.getpid()}"
        self.path = os.path.join(ROOT if self.second else first, name)
        os.mkdir(self.path)
        self.write("memory.max" if self.second else "memory.limit_in_bytes", limit)

    def write(self, name, value):
        with open(os.path.join(self.path, name), "w", encoding="ascii") as file:
            file.write(str(value))

    def run(self, command):
        """The command's output; it is in the group before it starts."""
        enter = lambda: self.write("cgroup.procs", os.getpid())
        done = subprocess.run(command, preexec_fn=enter, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{shlex.join(command)} failed:\n{done.stderr}")
        return done.stdout

    def remove(self):
        os.rmdir(self.path)


def speed_of(output):
    """Tokens a second in a peer's output."""
    numbers = re.findall(r"(\d+\.\d+)\s*±", output) or re.findall(r"\d+\.\d+", output)
    if not numbers:
        sys.exit(f"the peer's output has no number:\n{output}")
    return float(numbers[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("aios")
    parser.add_argument("model")
    parser.add_argument("--limit", type=int, default=3_000_000_000, help="bytes of the group")
    parser.add_argument("--ram", default="2800M", help="what aios may use of them")
    parser.add_argument("--peer", help="a command that maps the file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-n", type=int, default=8, help="tokens of a round")
    args = parser.parse_args()
    bench = [args.aios, "bench", "-m", args.model, "-p", "0", "-n", str(args.n), "-r", "1"]
    bench += ["--no-bandwidth", "--ram", args.ram, "-o", "json"]
    group = Group(args.limit)
    ours, fractions, peers = [], [], []
    try:
        for _ in range(args.rounds):
            report = json.loads(group.run(bench))
            ours.append(report["decode_tokens_per_s"]["median"])
            fractions.append(report["disk_fraction"]["median"])
            if args.peer:
                peers.append(speed_of(group.run(shlex.split(args.peer.format(model=args.model)))))
    finally:
        group.remove()
    print(f"aios: {statistics.median(ours):.2f} tok/s of {ours}")
    print(f"of the disk alone: {statistics.median(fractions):.2f} of {fractions}")
    if peers:
        print(f"peer: {statistics.median(peers):.2f} tok/s of {peers}")
        ratios = [mine / other for mine, other in zip(ours, peers)]
        print(f"ratio: {statistics.median(ratios):.2f} of {ratios}")


if __name__ == "__main__":
    main()
