#!/usr/bin/env python3
"""Compares `aios simulate` with cachegrind, and both with a peer (SPEC.md, B22).

    python3 scripts/check_simulation.py target/debug/aios MODEL.gguf [--peer PATH/llama-bench]
        [--points decode,fits,warm,pass4,deep] [--rows]

For each point, one thread of the AVX2 path: DRAM reads that the simulation gives, and the reads
that cachegrind counts. They must be within 3 % of each other; so must reads and stores that miss
together. The caches are chosen for SmolLM2-135M. At `fits` the model fits the cache, and what
counts is a run from its first token on: the weights come in once, and what a token reads is its
share of them; the pass by which the benchmark warms up is the one that finds nothing. `warm` is
the same cache once they are in. Hardly anything is read there, and 3 % of it is two lines, so the
rule is 3 % or 0.02 MB a token; the table says which of the two held. At `half`, which runs only if
it is named, the caches have one way fewer than the model's 97 MB need: about half of it stays, and
each line that the ledger does not know of (code, stack) can drive out twelve, so that agreement is
not to be expected there.

The peer, where there is one, must not read less than we do, by more than 0.3 % of what it reads or
0.02 MB. At `fits` it is not asked: for no tokens it does not load the model, so that loading would
not cancel out. Its passes of 4 tokens are those of a prompt in batches of 4. At depth it goes on
behind a prompt that the llama-completion beside the llama-bench has read without valgrind. A point
for which the program has no option is left out, and a dash stands there. A point takes about a
minute for a model of 100 MB, and two with a peer.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import cachegrind

RELATIVE = 0.03
# What `warm` may differ by: some sets hold weights, code and stack, more lines than there are ways.
FEW_BYTES = 20_000
OF_PEER = 0.003
MIB = 1 << 20
# Name: the last level, tokens of a pass, positions before the first, the counts differenced. From 0
# on the caches are cold. Where little is read, loading's chance (up to 2 MB, as addresses fall) is
# spread over more tokens.
POINTS = {
    "decode": ([32 * MIB, 16, 64], 1, 0, [4, 36]),
    "half": ([88 * MIB, 11, 64], 1, 0, [4, 36]),
    "fits": ([128 * MIB, 16, 64], 1, 0, [0, 32]),
    "warm": ([128 * MIB, 16, 64], 1, 0, [16, 144]),
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


def agree(ours, theirs, few=0):
    """The rule by which two figures are the same for our purposes, or None."""
    apart = abs(ours - theirs)
    if apart <= RELATIVE * theirs:
        return f"{RELATIVE:.0%}"
    return f"{few / 1e6} MB" if apart <= few else None


def no_more(ours, theirs):
    """Whether we read no more than a peer."""
    return ours <= theirs + max(OF_PEER * theirs, FEW_BYTES)


def peer_options(usage, name, tokens_per_pass):
    """What makes llama-bench do what a point does; None if its usage has no option for that."""
    if tokens_per_pass > 1:
        length = str(tokens_per_pass)
        wanted, options = ["--batch-size", "--ubatch-size"], ["-p", "{n}", "-n", "0"]
        options += ["-b", length, "-ub", length]
    else:
        wanted, options = [], ["-p", "0", "-n", "{n}"]
    missing = [option for option in wanted if option not in usage]
    if missing:
        print(f"{name}: the peer has no {', '.join(missing)}", file=sys.stderr)
        return None
    return options


def self_test():
    """A comparison that cannot fail proves nothing."""
    assert agree(100e6, 97.2e6) == "3%" and agree(100e6, 96e6) is None
    assert agree(20e3, 0.0, 20e3) == "0.02 MB" and agree(22e3, 1e3, 20e3) is None
    assert agree(20e3, 0.0) is None
    assert no_more(97.2e6, 97e6) and not no_more(97.4e6, 97e6)
    assert no_more(21e3, 1e3) and not no_more(22e3, 1e3)
    usage = "-p, --n-prompt -n, --n-gen -b, --batch-size -ub, --ubatch-size"
    assert peer_options(usage, "fits", 1) == ["-p", "0", "-n", "{n}"]
    four = peer_options(usage, "pass4", 4)
    assert four == ["-p", "{n}", "-n", "0", "-b", "4", "-ub", "4"]
    summary = cachegrind.parse_summary("desc: x\nevents: Ir DLmr\nfn=y\n1 2 3\nsummary: 12 34\n")
    assert summary == {"Ir": 12, "DLmr": 34}


def peer_reads_behind(args, ll, depth, tokens):
    """Bytes that the peer reads a token behind a prompt, which it has read without valgrind."""
    program = Path(args.peer).with_name("llama-completion")
    if not program.exists():
        print(f"deep: there is no {program}", file=sys.stderr)
        return None
    with tempfile.TemporaryDirectory() as folder:
        state, prompt = Path(folder) / "state", Path(folder) / "prompt"
        # Each of these words is a token of SmolLM2's; what they say does not matter.
        words = ("time", "day", "water", "house", "world", "night", "hand", "head")
        prompt.write_text(" ".join(words[i % len(words)] for i in range(depth - 1)))
        command = [str(program), "-m", args.model, "-f", str(prompt), "--prompt-cache", str(state)]
        command += ["-c", str(depth + 256), "--temp", "0", "-no-cnv", "--no-warmup", "-n"]
        done = subprocess.run([*command, "1"], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"error: {' '.join(command)} 1 ended with {done.returncode}:\n{done.stderr}")
        command += ["{n}", "--prompt-cache-ro", "--ignore-eos", "--no-repack", "-t", "1"]
        return cachegrind.measure(command, ll, tokens)["read_bytes_per_token"]


def peer_reads(args, name, ll, tokens):
    """Bytes that the peer reads a token at a point, or None if it is not asked."""
    if not args.peer or tokens[0] == 0:
        return None
    _, tokens_per_pass, depth, _ = POINTS[name]
    if depth:
        return peer_reads_behind(args, ll, depth, tokens)
    done = subprocess.run([args.peer, "--help"], capture_output=True, text=True, check=False)
    options = peer_options(done.stdout + done.stderr, name, tokens_per_pass)
    if options is None:
        return None
    command = [args.peer, "-m", args.model, *options, "-r", "1", "-t", "1", "--no-warmup"]
    return cachegrind.measure(command, ll, tokens)["read_bytes_per_token"]


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
    few = FEW_BYTES if name == "warm" else 0
    rules = [agree(read, measured, few), agree(both, all_measured, few)]
    peer = peer_reads(args, name, ll, tokens)
    ok = None not in rules and (peer is None or no_more(measured, peer))
    apart, all_apart = abs(read - measured), abs(both - all_measured)
    cells = [name, f"{counted / 1e6:.3f}", f"{read / 1e6:.3f}", f"{measured / 1e6:.3f}"]
    cells += [f"{apart / max(measured, 1):.2%}", f"{apart / 1e6:.4f}", rules[0] or "NONE"]
    cells += [f"{both / 1e6:.3f}", f"{all_measured / 1e6:.3f}", f"{all_apart / 1e6:.4f}"]
    cells += [rules[1] or "NONE", f"{ours['reread_ratio']:.4f}"]
    cells += ["-" if peer is None else f"{peer / 1e6:.3f}", "yes" if ok else "NO"]
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
    try:
        args.tokens = args.tokens and cachegrind.two_counts(args.tokens)
    except ValueError as error:
        parser.error(str(error))
    for program in filter(None, [args.aios, args.peer]):
        if not shutil.which(program):
            parser.error(f"{program} is no program")
    args.peer = args.peer and shutil.which(args.peer)
    # Panels are made outside valgrind.
    command = [args.aios, "logits", "-m", args.model, "--ids", "1"]
    if subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode != 0:
        sys.exit(f"error: {' '.join(command)} has failed")
    print("MB/token, reads that miss the last level; then with stores that miss")
    print("| point | counted | simulated | cachegrind | apart | MB apart | within "
          "| simulated + stores | cachegrind + stores | MB apart | within | re-read ratio | peer "
          "| agrees |")
    print("|---|" + "---:|" * 12 + "---|")
    if not all([point(args, name) for name in names]):
        sys.exit("error: a point does not agree, or reads more than the peer")


if __name__ == "__main__":
    main()
