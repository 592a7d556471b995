#!/usr/bin/env python3
"""Speed of aios beside llama.cpp and ik_llama.cpp, in alternating runs of one session.

Needs built programs only: aios, and the peers' llama-bench (build.sh makes them). Usage:

    python3 benches/peers/compare.py --aios target/release/aios --llama DIR/bin --ik DIR/bin \\
        --pairs 9 --threads 2 [--depth 4096] [--out FILE.md] [--json FILE.json] MODEL...

README.md in this folder says what the columns mean.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import random
import resource
import shlex
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable

PROMPT, GENERATED = 512, 64

AIOS, LLAMA, IK = "aios", "llama.cpp", "ik_llama.cpp"
PEERS = (LLAMA, IK)

# What the project promises itself. Decoding cannot be faster than memory, so a file whose weights
# stream at this share of the bandwidth has met its target whatever a peer does.
DECODE_TARGET = 1.15
BANDWIDTH_TARGET = 0.90
# A file of Falcon 7B's shape is mostly Q5_0, which the peers read at a third of the bandwidth.
FALCON = "falcon"
FALCON_DECODE_TARGET = 2.0
FALCON_BANDWIDTH_TARGET = 0.85
PREFILL_TARGET = 1.0
PREFILL_TARGET_LLAMA = 1.5

RESAMPLES = 10_000
CONFIDENCE = 0.90
SEED = 271828

# ik_llama.cpp computes this model wrongly in batches of 32 tokens and more: the perplexity of one
# text is 95.6 there and 16.4 below. A speed counts only with right results, so it gets the widest
# batch that has them.
IK_WRONG_WIDE_MODEL = "smollm2"
IK_RIGHT_BATCH = 31

# ik_llama.cpp's warm-up reads one token, the others' read the whole prompt. So it reads twice, and
# the second time counts.
IK_REPETITIONS = 2

# A run that takes longer than this hangs.
TIMEOUT_S = 3600

# Threads that wait for each other in a loop fall to a tenth of their speed and less as soon as one
# of them has to share its core, and not every engine alike. So with more than this many cores in
# use by others during the runs, the figures say nothing.
OTHERS_LIMIT = 0.1

# The processor's features that decide which kernels run.
FEATURES = ("avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16")

MISSING, NONE = "missing", "–"


class RunFailed(Exception):
    """A program could not be run, ended with an error, or printed something else than numbers."""


@dataclass(frozen=True)
class Engine:
    """A program to measure. Without a path it is missing, which the table says."""

    name: str
    path: Path
    found: bool
    extra: tuple[str, ...] = ()


@dataclass
class Part:
    """What was measured of one file in one way, a sample from each round."""

    model: str
    kind: str
    depth: int
    falcon: bool = False
    samples: dict[str, list[float]] = field(default_factory=dict)
    fractions: list[float] = field(default_factory=list)
    others: dict[str, list[float]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        if self.kind == "prefill":
            return f"{PROMPT}-token prompt"
        return f"decode at depth {self.depth}" if self.depth else "decode"

    def ratios(self, peer: str) -> list[float]:
        return [a / b for a, b in zip(self.samples[AIOS], self.samples[peer])]

    def better_peer(self) -> str | None:
        """The peer with the higher median."""
        measured = [peer for peer in PEERS if peer in self.samples]
        return max(measured, key=lambda p: statistics.median(self.samples[p]), default=None)


@dataclass(frozen=True)
class Estimate:
    """A median with its bootstrap interval."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: list[float]) -> Estimate:
        # Its own generator, so that an interval does not depend on what else is computed.
        generator = random.Random(SEED)
        medians = sorted(
            statistics.median(generator.choices(samples, k=len(samples))) for _ in range(RESAMPLES)
        )
        tail = round(RESAMPLES * (1 - CONFIDENCE) / 2)
        return cls(statistics.median(samples), medians[tail], medians[-tail - 1])

    def against(self, target: float) -> str:
        """Missed only when the whole interval is below the target, met only when none of it is."""
        if self.high < target:
            return "missed"
        return "met" if self.low >= target else "undecided"

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}, {self.high:.2f}]"


# Runs.


def busy_seconds() -> float | None:
    """What all cores have computed since the start, or lost to other virtual machines.

    Only Linux says so.
    """
    try:
        line = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0]
    except OSError:
        return None
    user, nice, system, _idle, _wait, irq, soft_irq, steal = map(int, line.split()[1:9])
    ticks = user + nice + system + irq + soft_irq + steal
    return ticks / os.sysconf("SC_CLK_TCK")


class Others:
    """Counts the cores that were in use by others while a block ran, None where nothing tells."""

    cores: float | None = None

    def __enter__(self) -> Others:
        self.before = self.now()
        return self

    def __exit__(self, *_failure: object) -> None:
        elapsed, busy, own = (b - a for a, b in zip(self.before, self.now()))
        # The clocks tick a hundred times a second, so that nothing may come out as less.
        self.cores = max(0.0, (busy - own) / elapsed) if busy_seconds() is not None else None

    @staticmethod
    def now() -> tuple[float, float, float]:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        own = children.ru_utime + children.ru_stime
        return time.monotonic(), busy_seconds() or 0.0, own


def run(command: list[str]) -> str:
    """What a command prints. Its last word on stderr explains a failure."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    except OSError as error:
        raise RunFailed(f"{Path(command[0]).name}: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise RunFailed(f"{Path(command[0]).name} took longer than {TIMEOUT_S} s") from error
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or ["nothing on stderr"]
        raise RunFailed(f"{Path(command[0]).name} ended with {done.returncode}: {said[-1]}")
    return done.stdout


def run_json(command: list[str]) -> Any:
    output = run(command)
    try:
        return json.loads(output)
    except ValueError as error:
        raise RunFailed(f"{Path(command[0]).name} printed no JSON: {error}") from error


class Bench:
    """Runs the engines and keeps what they say about themselves."""

    def __init__(self, engines: dict[str, Engine], threads: int, prompt: int) -> None:
        self.engines = engines
        self.threads = threads
        self.prompt = prompt
        self.streams: list[float] = []
        self.others: list[float] = []
        self.versions: dict[str, str] = {}
        self.isa = ""

    def once(self, engine: str, model: Path, narrow: bool, depth: int) -> dict[str, float]:
        """One repetition: tokens per second by kind, and aios's share of the bandwidth."""
        measure = self.aios if engine == AIOS else self.peer
        try:
            with Others() as others:
                sample = measure(engine, model, narrow, depth)
            if others.cores is not None:
                sample["others"] = others.cores
                self.others.append(others.cores)
            return sample
        except (KeyError, IndexError, TypeError) as error:
            raise RunFailed(f"{engine}'s report has another form: {error!r}") from error

    def command(self, engine: str, model: Path) -> list[str]:
        chosen = self.engines[engine]
        command = [str(chosen.path)] + (["bench"] if engine == AIOS else [])
        command += ["-m", str(model), "-t", str(self.threads), "-o", "json"]
        return command + list(chosen.extra)

    def aios(self, engine: str, model: Path, _narrow: bool, depth: int) -> dict[str, float]:
        command = self.command(engine, model) + ["-r", "1", "-n", str(GENERATED)]
        command += ["-p", "0", "-d", str(depth)] if depth else ["-p", str(self.prompt)]
        report = run_json(command)
        self.isa = report["isa"]
        self.streams += report["stream_gb_per_s"]["samples"]
        sample = {
            "decode": report["decode_tokens_per_s"]["median"],
            "bandwidth": report["bandwidth_fraction"]["median"],
        }
        if self.prompt and not depth:
            sample["prefill"] = report["prefill_tokens_per_s"]["median"]
        return sample

    def peer(self, engine: str, model: Path, narrow: bool, depth: int) -> dict[str, float]:
        command = self.command(engine, model)
        repetitions = 1 if depth or engine == LLAMA else IK_REPETITIONS
        command += ["-r", str(repetitions)]
        if not depth:
            command += ["-p", str(self.prompt), "-n", str(GENERATED)]
        elif engine == LLAMA:
            command += ["-p", "0", "-n", str(GENERATED), "-d", str(depth)]
        else:
            command += ["-p", "0", "-n", "0", "-gp", f"{depth},{GENERATED}"]
        if narrow and engine == IK:
            command += ["-ub", str(IK_RIGHT_BATCH)]
        tests = run_json(command)
        self.versions[engine] = f"build {tests[0]['build_commit']}"
        speeds = {
            "prefill" if test["n_gen"] == 0 else "decode": test["samples_ts"][-1] for test in tests
        }
        return {kind: speeds[kind] for kind in self.kinds(depth)}

    def kinds(self, depth: int) -> tuple[str, ...]:
        """What a run measures."""
        return ("prefill", "decode") if self.prompt and not depth else ("decode",)


def measure(
    bench: Bench, model: Path, narrow: bool, pairs: int, depth: int, falcon: bool
) -> list[Part]:
    """Rounds of one run of each engine, so that a change of the machine's load meets them all."""
    kinds = bench.kinds(depth)
    samples: dict[str, list[dict[str, float]]] = {}
    failures = {name: MISSING for name, engine in bench.engines.items() if not engine.found}
    for number in range(1, pairs + 1):
        for name in bench.engines:
            if name in failures:
                continue
            try:
                sample = bench.once(name, model, narrow, depth)
            except RunFailed as failure:
                # A table that is published should not tell where the file lay.
                failures[name] = str(failure).replace(f"{model.parent}{os.sep}", "")
                print(f"{model.name}: {failures[name]}", file=sys.stderr)
                continue
            samples.setdefault(name, []).append(sample)
            shown = [kind for kind in (*kinds, "others") if kind in sample]
            figures = "  ".join(f"{kind} {sample[kind]:.2f}" for kind in shown)
            line = f"{model.name} depth {depth} round {number}/{pairs} {name:12} {figures}"
            print(line, file=sys.stderr, flush=True)
    parts = []
    for kind in kinds:
        part = Part(model.name, kind, depth, falcon, failures=dict(failures))
        for name in samples:
            # An engine that failed in a later round has too few samples to pair them.
            if name not in failures:
                part.samples[name] = [sample[kind] for sample in samples[name]]
                part.others[name] = [s["others"] for s in samples[name] if "others" in s]
        if kind == "decode" and AIOS in part.samples:
            part.fractions = [sample["bandwidth"] for sample in samples[AIOS]]
        parts.append(part)
    return parts


def general_name(aios: Engine, model: Path) -> str:
    """The name that the file gives its model, empty if it gives none."""
    try:
        report = run_json([str(aios.path), "inspect", "--json", "--no-tensors", str(model)])
    except RunFailed as failure:
        print(f"{model.name}: {failure}", file=sys.stderr)
        return ""
    named = (entry["value"] for entry in report["metadata"] if entry["key"] == "general.name")
    return next(named, "").strip('"')


# Verdicts.


@dataclass(frozen=True)
class Claim:
    """One target, what was measured of it (None if nothing could be), and what follows."""

    text: str
    target: float
    estimate: Estimate | None

    @property
    def state(self) -> str:
        return self.estimate.against(self.target) if self.estimate else "unknown"


def claims(part: Part) -> tuple[list[Claim], Callable[[list[str]], str]]:
    """The targets of a part, and how their states join: one suffices, or all are needed."""

    def ratio(peer: str | None) -> Estimate | None:
        known = AIOS in part.samples and peer in part.samples
        return Estimate.of(part.ratios(peer)) if peer and known else None

    better = ratio(part.better_peer())
    if part.kind == "prefill":
        return [
            Claim(f"{PREFILL_TARGET:.2f} × better peer", PREFILL_TARGET, better),
            Claim(f"{PREFILL_TARGET_LLAMA:.2f} × {LLAMA}", PREFILL_TARGET_LLAMA, ratio(LLAMA)),
        ], all_needed
    wanted = (DECODE_TARGET, BANDWIDTH_TARGET)
    if part.falcon:
        wanted = (FALCON_DECODE_TARGET, FALCON_BANDWIDTH_TARGET)
    found = [Claim(f"{wanted[0]:.2f} × better peer", wanted[0], better)]
    if not part.depth:
        share = Estimate.of(part.fractions) if part.fractions else None
        found.append(Claim(f"{wanted[1]:.2f} of bandwidth", wanted[1], share))
    return found, one_suffices


def one_suffices(states: list[str]) -> str:
    """The lower of two targets counts, so one that is met is enough."""
    return next((state for state in ("met", "unknown", "undecided") if state in states), "missed")


def all_needed(states: list[str]) -> str:
    return next((state for state in ("missed", "unknown", "undecided") if state in states), "met")


def verdict(part: Part) -> tuple[str, str]:
    """The target in words, and whether it was met."""
    found, join = claims(part)
    word = " and " if join is all_needed else " or "
    target = word.join(claim.text for claim in found)
    if AIOS not in part.samples:
        return target, "not measured"
    state = join([claim.state for claim in found])
    known = "; ".join(f"{claim.text}: {claim.state}" for claim in found)
    text = f"**{state}**" if len(found) == 1 else f"**{state}** ({known})"
    absent = [peer for peer in PEERS if peer not in part.samples]
    return target, text + (f", without {' and '.join(absent)}" if absent else "")


# The report.


COLUMNS = (
    "file", "part", f"{AIOS}, tok/s", f"{LLAMA}, tok/s", f"{IK}, tok/s", f"{AIOS} / {LLAMA}",
    f"{AIOS} / {IK}", f"{AIOS} / better peer", "share of bandwidth", "target", "verdict",
)  # fmt: skip


def row(part: Part) -> list[str]:
    def absent(*engines: str) -> str:
        words = (part.failures[engine] for engine in engines if engine in part.failures)
        return next((word if word == MISSING else "failed" for word in words), NONE)

    def speed(engine: str) -> str:
        if engine not in part.samples:
            return absent(engine)
        return f"{statistics.median(part.samples[engine]):.1f}"

    def ratio(peer: str) -> str:
        if AIOS in part.samples and peer in part.samples:
            return str(Estimate.of(part.ratios(peer)))
        return absent(AIOS, peer)

    better = part.better_peer()
    against_better = f"{ratio(better)} ({better})" if better else absent(*PEERS)
    share = str(Estimate.of(part.fractions)) if part.fractions else NONE
    target, text = verdict(part)
    return [
        part.model, part.title, *map(speed, (AIOS, *PEERS)), *map(ratio, PEERS), against_better,
        share, target, text,
    ]  # fmt: skip


def table(parts: list[Part]) -> list[str]:
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---|---|" + "---:|" * 7 + "---|---|"]
    # A failure's text may hold the character that separates cells.
    for part in parts:
        lines.append("| " + " | ".join(cell.replace("|", "/") for cell in row(part)) + " |")
    return lines


def cpu_facts() -> dict[str, str]:
    """The first processor's entry in Linux's list; elsewhere nothing."""
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def built(engine: Engine) -> str:
    """What build.sh wrote down beside the programs: commit, instruction sets, compiler."""
    try:
        lines = (engine.path.parent.parent / "BUILT").read_text(encoding="utf-8").splitlines()
        return f"; built as {lines[0]} by {lines[2]}"
    except (OSError, IndexError):
        return ""


def environment(bench: Bench) -> dict[str, str]:
    facts = cpu_facts()
    flags = facts.get("flags", "").split()
    has = [name for name in FEATURES if name in flags]
    lacks = [name for name in FEATURES if name not in flags]
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    streams = bench.streams
    stream = "not measured"
    if streams:
        middle, low, high = statistics.median(streams), min(streams), max(streams)
        stream = f"{middle:.1f} GB/s, {low:.1f} to {high:.1f} in {len(streams)} runs of {AIOS}"
    others = "not known"
    if bench.others:
        middle, high = statistics.median(bench.others), max(bench.others)
        above = sum(cores > OTHERS_LIMIT for cores in bench.others)
        others = f"{middle:.2f} cores during a run, at most {high:.2f}; "
        others += f"more than {OTHERS_LIMIT} in {above} of {len(bench.others)} runs"
        if middle > OTHERS_LIMIT:
            others += "; **the machine was not idle, and these figures say nothing**"
    told = {
        "processor": facts.get("model name", platform.processor() or platform.machine()),
        "cores": f"{os.cpu_count()}, of which {bench.threads} threads were used",
        "instruction sets": f"has {' '.join(has)}; lacks {' '.join(lacks) or 'none of these'}",
        "memory": f"{pages * size / 2**30:.1f} GiB",
        "streaming read": stream,
        "kernel": f"{platform.system()} {platform.release()}",
        "date": datetime.datetime.now().astimezone().isoformat(timespec="minutes"),
        "used by others": others,
    }
    for name, engine in bench.engines.items():
        version = bench.versions.get(name, "not run") if engine.found else MISSING
        if name == AIOS and engine.found:
            version = f"{version}, instruction set {bench.isa}"
        extra = f", options {shlex.join(engine.extra)}" if engine.extra else ""
        told[f"version of {name}"] = version + extra + (built(engine) if name != AIOS else "")
    return told


def report(parts: list[Part], narrow: list[str], pairs: int, told: dict[str, str]) -> str:
    lines = table(parts)
    lines += ["", f"Medians of {pairs} rounds of one run each in turn. A ratio is the median of"]
    lines += [f"the rounds' ratios, in brackets its {CONFIDENCE:.0%} bootstrap interval. A target"]
    lines += ["is missed when the whole interval is below it, met when none of it is."]
    for model in narrow:
        lines += ["", f"{IK} ran {model} in batches of {IK_RIGHT_BATCH} tokens (`-ub`): in wider"]
        lines += ["ones its results for this model are wrong (perplexity 95.6 instead of 16.4)."]
    reasons = {
        f"{name}, {part.model}, depth {part.depth}: {reason}"
        for part in parts
        for name, reason in part.failures.items()
        if reason != MISSING
    }
    if reasons:
        lines += ["", "Failed:", "", *(f"- {reason}" for reason in sorted(reasons))]
    lines += ["", *(f"- {key}: {value}" for key, value in told.items())]
    return "\n".join(lines) + "\n"


def raw(part: Part) -> dict[str, Any]:
    """All samples of a part, and what was computed of them."""
    measured = [peer for peer in PEERS if AIOS in part.samples and peer in part.samples]
    target, text = verdict(part)
    return {
        "model": part.model,
        "part": part.kind,
        "depth": part.depth,
        "tokens_per_s": part.samples,
        "bandwidth_fraction": part.fractions,
        "cores_used_by_others": part.others,
        "absent": part.failures,
        "ratios": {peer: vars(Estimate.of(part.ratios(peer))) for peer in measured},
        "better_peer": part.better_peer(),
        "target": target,
        "verdict": text,
    }


# The command line.


def arguments() -> argparse.Namespace:
    summary = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(description=summary)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL", help="a GGUF file")
    parser.add_argument("--aios", type=Path, required=True, help="the program aios")
    for option, peer in (("llama", LLAMA), ("ik", IK)):
        text = f"the folder of {peer}'s llama-bench; without it the table says missing"
        parser.add_argument(f"--{option}", type=Path, help=text, metavar="DIR")
    for option in ("aios", "llama", "ik"):
        text = f"further options of {option}'s bench, in one word"
        parser.add_argument(f"--{option}-args", default="", help=text, metavar="OPTIONS")
    parser.add_argument("--pairs", type=int, default=9, help="rounds (9)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="(all cores)")
    text = "also decode with so many tokens in the context"
    parser.add_argument("--depth", type=int, default=0, help=text)
    parser.add_argument("--decode-only", action="store_true", help="leave the prompt out")
    parser.add_argument("--depth-only", action="store_true", help="nothing but --depth")
    parser.add_argument("--out", type=Path, help="write the table there instead of stdout")
    parser.add_argument("--json", type=Path, help="write all samples there")
    options = parser.parse_args()
    if options.pairs < 1 or options.threads < 1 or options.depth < 0:
        parser.error("--pairs and --threads are at least 1, --depth at least 0")
    for model in options.models:
        if not model.is_file():
            parser.error(f"no such file: {model}")
    return options


def engines(options: argparse.Namespace) -> dict[str, Engine]:
    """In the order in which they run."""
    paths = {AIOS: options.aios}
    for peer, folder in ((LLAMA, options.llama), (IK, options.ik)):
        paths[peer] = (folder or Path(MISSING)) / "llama-bench"
    extras = dict(zip(paths, (options.aios_args, options.llama_args, options.ik_args)))
    return {
        name: Engine(name, path.absolute(), path.is_file(), tuple(shlex.split(extras[name])))
        for name, path in paths.items()
    }


def main() -> int:
    options = arguments()
    found = engines(options)
    bench = Bench(found, options.threads, 0 if options.decode_only else PROMPT)
    if not found[AIOS].found:
        print(f"no such program: {found[AIOS].path}", file=sys.stderr)
        return 2
    bench.versions[AIOS] = run([str(found[AIOS].path), "--version"]).strip()
    parts: list[Part] = []
    narrow: list[str] = []
    for model in options.models:
        name = general_name(found[AIOS], model)
        is_narrow = IK_WRONG_WIDE_MODEL in name.lower() and found[IK].found
        narrow += [model.name] if is_narrow else []
        depths = ([] if options.depth_only else [0]) + ([options.depth] if options.depth else [])
        for depth in depths:
            falcon = FALCON in name.lower()
            parts += measure(bench, model, is_narrow, options.pairs, depth, falcon)
        # After each file, so that an interruption loses one file's runs and not all.
        told = environment(bench)
        text = report(parts, narrow, options.pairs, told)
        if options.out:
            options.out.write_text(text, encoding="utf-8")
        if options.json:
            data = {"environment": told, "rounds": options.pairs, "parts": list(map(raw, parts))}
            options.json.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    if not options.out:
        print(text, end="")
    return 1 if any(AIOS in part.failures for part in parts) else 0


if __name__ == "__main__":
    sys.exit(main())
