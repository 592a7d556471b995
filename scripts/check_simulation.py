#!/usr/bin/env python3
"""Compares `aios simulate` with cachegrind, and both with a peer (SPEC.md, B22).

    python3 scripts/check_simulation.py target/debug/aios MODEL.gguf [--peer PATH/llama-bench]
        [--points decode,fits,pass4,deep] [--rows]

For each point, one thread of the AVX2 path: DRAM reads that the simulation gives, and the reads
that cachegrind counts. They must be within 3 % of each other, or within 0.3 % of the bytes
that the ledger counts, which matters where the model fits the cache. So must reads and stores
that miss together. The caches are chosen for SmolLM2-135M. At `half`, which runs only if it is
named, they have one way fewer than its 97 MB need: about half of it stays, and each line that the
ledger does not know of (code, stack) can drive out twelve, so that agreement is not to be expected
there. The peer, where there is one, must not read less than we do, by
more than 0.3 % of the counted bytes; it has no passes of 4 and fills a depth by reading a prompt,
so it is asked at `decode` and `fits` only. A point takes about a minute for a model of 100 MB.
"""

import argparse
import json
import subprocess
import sys

import cachegrind

RELATIVE = 0.03
OF_COUNTED = 0.003
MIB = 1 << 20
# Name: the last level, tokens of a pass, positions before the first, the counts differenced. Where
# little is read, loading's chance (up to 2 MB, as addresses fall) is spread over more tokens.
POINTS = {
    "decode": ([32 * MIB, 16, 64], 1, 0, [4, 36]),
    "half": ([88 * MIB, 11, 64], 1, 0, [4, 36]),
    "fits": ([128 * MIB, 16, 64], 1, 0, [16, 144]),
    "pass4": ([32 * MIB, 16, 64], 4, 0, [4, 36]),
    "deep": ([32 * MIB, 16, 64], 1, 2048, [4, 20]),
}

DEFAULT = [name for name in POINTS if name != "half"]


def simulated(aios, model, options, ll, tokens):
    """What our model of the cache says, for the passes that cachegrind's difference has."""
    command = [aios, "simulate", "-m", model, "--json", "--ll", ",".join(map(str, ll)), *options]
    tokens_per_pass = int(options[options.index("--pass") + 1])
    # The benchmark has a pass of its own first, which later ones overwrite.
    warm_up = tokens[0] // tokens_per_pass
    command += ["-n", str(tokens[1] - tokens[0]), "--warm-up", str(warm_up)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"error: {' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout)


def agree(ours, theirs, counted):
    """Whether two figures are the same for our purposes, and how far they are apart."""
    apart = abs(ours - theirs)
    return apart <= max(RELATIVE * theirs, OF_COUNTED * counted), apart


def self_test():
    """A comparison that cannot fail proves nothing."""
    assert agree(100.0, 97.2, 100.0)[0] and not agree(100.0, 96.0, 100.0)[0]
    assert agree(0.2, 0.0, 100.0)[0] and not agree(0.4, 0.0, 100.0)[0]
    summary = cachegrind.parse_summary("desc: x\nevents: Ir DLmr\nfn=y\n1 2 3\nsummary: 12 34\n")
    assert summary == {"Ir": 12, "DLmr": 34}


def point(args, name):
    """Runs a point: prints its row of the table, and says whether everything agrees."""
    ll, tokens_per_pass, depth, tokens = POINTS[name]
    tokens = args.tokens or tokens
    options = ["--pass", str(tokens_per_pass), "--depth", str(depth), "-t", "1", "--isa", "avx2"]
    options += ["--no-repack"] if args.rows else []
    ours = simulated(args.aios, args.model, options, ll, tokens)
    command = [args.aios, "bench", "-m", args.model, "-p", "0", "-n", "{n}", "-r", "1"]
    command += ["--no-bandwidth", "--blank", *options]
    theirs = cachegrind.measure(command, ll, tokens)
    counted = ours["counted_bytes_per_token"]
    read = ours["dram_read_bytes_per_token"]
    both = read + ours["dram_ownership_bytes_per_token"]
    measured = theirs["read_bytes_per_token"]
    all_measured = measured + theirs["store_bytes_per_token"]
    good, apart = agree(read, measured, counted)
    all_good, all_apart = agree(both, all_measured, counted)
    ok = good and all_good
    peer = "-"
    if args.peer and name in ("decode", "fits"):
        command = [args.peer, "-m", args.model, "-p", "0", "-n", "{n}", "-r", "1", "-t", "1"]
        found = cachegrind.measure([*command, "--no-warmup"], ll, tokens)["read_bytes_per_token"]
        peer = f"{found / 1e6:.3f}"
        ok &= measured <= found + OF_COUNTED * counted
    cells = [name, f"{counted / 1e6:.3f}", f"{read / 1e6:.3f}", f"{measured / 1e6:.3f}"]
    cells += [f"{apart / max(measured, 1):.2%}", f"{apart / counted:.3%}"]
    cells += [f"{both / 1e6:.3f}", f"{all_measured / 1e6:.3f}", f"{all_apart / counted:.3%}"]
    cells += [f"{ours['reread_ratio']:.4f}", peer, "yes" if ok else "NO"]
    print("| " + " | ".join(cells) + " |", flush=True)
    return ok


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("aios")
    parser.add_argument("model")
    parser.add_argument("--peer", help="llama-bench, built for AVX2")
    parser.add_argument("--points", default=",".join(DEFAULT))
    parser.add_argument("--tokens", help="token counts to difference at every point, as 1,2")
    parser.add_argument("--rows", action="store_true", help="weights as the file has them")
    args = parser.parse_args()
    self_test()
    names = args.points.split(",")
    if not set(names) <= POINTS.keys():
        parser.error(f"--points: known are {', '.join(POINTS)}")
    args.tokens = args.tokens and cachegrind.numbers(args.tokens, 2)
    # Panels are made outside valgrind.
    command = [args.aios, "logits", "-m", args.model, "--ids", "1"]
    subprocess.run(command, capture_output=True, check=True)
    print("MB/token, reads that miss the last level; then with stores that miss")
    print("| point | counted | simulated | cachegrind | apart | of counted | simulated + stores "
          "| cachegrind + stores | of counted | re-read ratio | peer | agrees |")
    print("|---|" + "---:|" * 10 + "---|")
    if not all([point(args, name) for name in names]):
        sys.exit("error: a point does not agree, or reads more than the peer")


if __name__ == "__main__":
    main()
