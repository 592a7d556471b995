#!/usr/bin/env python3
"""Instructions that a token costs, counted by callgrind and compared with a recorded baseline.

    python3 scripts/count_instructions.py target/debug/aios MODEL.gguf [--record]

Unlike times, instruction counts are the same on a busy machine. Valgrind offers a processor
without AVX-512, so this is the AVX2 path, on one thread. What is compared are differences of two
runs, so that loading the model does not count. A count more than 3 % above the baseline in
benches/instructions.json fails; one more than 3 % below asks for a new baseline.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

BASELINE = Path(__file__).resolve().parent.parent / "benches" / "instructions.json"
TOLERANCE = 0.03
# A prompt of some tokens that every vocabulary has.
IDS = [(37 * i) % 200 + 300 for i in range(65)]


def instructions(binary, model, ids, predict, options):
    """Instructions of one run of `aios logits`."""
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", binary, "logits"]
    command += ["-m", model, "-t", "1", "--ids", ",".join(map(str, ids))]
    command += ["--predict", str(predict), *options]
    environment = {**os.environ, "RUST_LOG": "error"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    found = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode != 0 or not found:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    return int(found[1])


def measure(binary, model):
    """Counts a token of decoding and of a prompt, from panels and from the file's own rows."""
    # The panels are made outside valgrind.
    subprocess.run([binary, "logits", "-m", model, "--ids", "1"], capture_output=True, check=True)
    counts = {}
    for name, options in (("panels", []), ("rows", ["--no-repack"])):
        once = instructions(binary, model, IDS[:1], 1, options)
        more = instructions(binary, model, IDS[:1], 3, options)
        counts[f"decode, {name}"] = (more - once) // 2
        prompt = instructions(binary, model, IDS, 1, options)
        counts[f"prompt of {len(IDS)}, {name}"] = (prompt - once) // (len(IDS) - 1)
    return counts


def main():
    binary, model = sys.argv[1:3]
    counts = measure(binary, model)
    if "--record" in sys.argv[3:]:
        BASELINE.write_text(json.dumps(counts, indent=2) + "\n")
    baseline = json.loads(BASELINE.read_text())
    worse = False
    print("| instructions a token | baseline | now | change |\n|---|---:|---:|---:|")
    for name, count in counts.items():
        change = count / baseline[name] - 1
        worse |= change > TOLERANCE
        hint = "  better: record it with --record" if change < -TOLERANCE else ""
        print(f"| {name} | {baseline[name]:,} | {count:,} | {change:+.2%} |{hint}")
    if worse:
        sys.exit(f"error: more than {TOLERANCE:.0%} above the baseline in {BASELINE.name}")


if __name__ == "__main__":
    main()
