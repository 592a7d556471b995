"""What passes of aios read from DRAM behind the caches of a processor, simulated (SPEC.md, B14).

A pass over several tokens reads the weights once, as the ledger counts it; what else it reads, and
what the caches keep, `aios simulate` says. Passes of a few lengths are simulated at one depth, and
what they read over what is counted for them is applied to the passes that a run really made.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable

# Tokens of the passes that are simulated; those between lie on a line.
LENGTHS = (1, 2, 4, 8, 16)
# Positions before them, about the middle of an answer.
DEPTH = 384
PASSES = 2

# For a length: simulated and counted bytes of a pass.
Curve = dict[int, tuple[float, float]]


def simulate(run: Callable[[list[str]], Any], aios: Path, model: Path, cache: str) -> Curve:
    """The curve of a model behind `cache`, a name that `aios simulate --cache` knows."""
    curve: Curve = {}
    for tokens in LENGTHS:
        command = [str(aios), "simulate", "-m", str(model), "--cache", cache, "--json", "-t", "1"]
        command += ["--pass", str(tokens), "-n", str(tokens * PASSES), "--warm-up", "1"]
        found = json.loads(run([*command, "--depth", str(DEPTH)]).stdout)
        read = found["dram_read_bytes_per_token"] + found["dram_ownership_bytes_per_token"]
        curve[tokens] = (read * tokens, found["counted_bytes_per_token"] * tokens)
    return curve


def at(curve: Curve, tokens: int) -> tuple[float, float]:
    """Simulated and counted bytes of a pass over `tokens` tokens."""
    known = sorted(curve)
    above = next((n for n in known if n >= tokens), known[-1])
    below = max((n for n in known if n <= tokens), default=known[0])
    share = (tokens - below) / (above - below) if above > below else 0.0
    ends = zip(curve[below], curve[above])
    simulated, counted = (low + share * (high - low) for low, high in ends)
    return simulated, counted


def mb_per_token(arm: dict[str, Any], target: Curve | None, draft: Curve | None) -> float | None:
    """What a run read for each token, by the passes that it made; None if that is not known."""
    phases = arm.get("phases")
    if not phases or target is None:
        return None
    of_draft = phases.get("draft", 0)
    of_target = sum(phases.values()) - of_draft
    if of_target <= 0 or (of_draft and draft is None):
        return None
    passes = arm.get("lengths") or [1]
    pairs = [(count, at(target, 1 + drafted)) for drafted, count in enumerate(passes)]
    simulated = sum(count * of for count, (of, _) in pairs)
    counted = sum(count * of for count, (_, of) in pairs)
    total = of_target * simulated / counted if counted else 0.0
    if of_draft and draft is not None:
        of, by = at(draft, 1)
        total += of_draft * of / by
    return arm["mb_per_token"] * total / (of_target + of_draft)
