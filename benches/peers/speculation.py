#!/usr/bin/env python3
"""What speculative decoding gives on real prompts, in aios and in llama.cpp.

Needs built programs only. Usage:

    python3 benches/peers/speculation.py --aios target/release/aios --llama DIR/bin \\
        [--rounds 3] [--tokens 160] [--threads 2] [--minutes M] [--out FILE.md] \\
        [--json FILE.json] [--plot FILE.svg] [--page PERFORMANCE.md] [--cache NAME] [--quick] \\
        MODEL[,DRAFT]...

The status is 1 if aios is at fault, 2 after a mistake, and 3 if rounds are left to be measured.
README.md in this folder says what is compared and what the columns mean.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable

import simulated
from compare import OTHERS_LIMIT, Engine, RunFailed, built, cpu_facts
from speculation_report import (
    AUTO, DRAFT, MISSING, PEER_LOOKUP, PEER_PLAIN, Unit, faults, plot, report,
)  # fmt: skip
from speculation_runs import PROGRAMS, Bench, Pair, Prompt, run

PROMPTS = Path(__file__).parents[2] / "validation" / "data" / "speculation_prompts.jsonl"

# What stands between these lines of a page is this program's.
PAGE_BEGIN, PAGE_END = "<!-- speculation.py begins -->", "<!-- speculation.py ends -->"

# The status if there was no time for all rounds.
UNFINISHED = 3

# What --quick sets where nothing else is said, and what holds without it.
QUICK = {"limit": 2, "rounds": 1, "tokens": 64, "cache": "none"}
FULL = {"limit": 0, "rounds": 3, "tokens": 160, "cache": "server-32mb"}

CACHE_HELP = "whose caches are simulated, a name of aios simulate, or none (server-32mb)"
QUICK_HELP = "some minutes: two prompts of each class, one round, 64 tokens, nothing simulated"


def read_prompts(options: argparse.Namespace) -> list[Prompt]:
    """The prompts that are asked for, an object a line; of each class the first `limit`.

    They come in turns of a prompt of each class, so that an interrupted run has some of all.
    """
    path, classes, limit = options.prompts, options.classes, options.limit
    prompts: list[tuple[int, Prompt]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            entry = json.loads(line)
            prompt = Prompt(entry["class"], entry["id"], entry["user"], entry.get("set", ""))
        except (ValueError, KeyError, TypeError) as error:
            raise SystemExit(f"{path}, line {number}: {error!r}") from error
        turn = sum(known.kind == prompt.kind for _, known in prompts)
        wanted = not classes or prompt.kind in classes
        wanted &= options.set is None or prompt.set == options.set
        if wanted and (limit == 0 or turn < limit):
            prompts.append((turn, prompt))
    if not prompts:
        raise SystemExit(f"{path} has no prompts of these classes and this set")
    return [prompt for _, prompt in sorted(prompts, key=lambda turn: turn[0])]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    text = "a GGUF file, and after a comma that of a draft model"
    parser.add_argument("pairs", nargs="+", type=Pair.parse, metavar="MODEL[,DRAFT]", help=text)
    parser.add_argument("--aios", type=Path, required=True, help="the program aios")
    text = "the folder of llama.cpp's programs; without it the table says missing"
    parser.add_argument("--llama", type=Path, metavar="DIR", help=text)
    parser.add_argument("--prompts", type=Path, default=PROMPTS, help="a file of prompts")
    text = "only prompts of this class; may be repeated"
    parser.add_argument("--class", dest="classes", action="append", default=[], help=text)
    text = "so many prompts of each class (0, all)"
    parser.add_argument("--limit", type=int, help=text)
    text = "only prompts of this set: development or held-out"
    parser.add_argument("--set", help=text)
    parser.add_argument("--rounds", type=int, help="(3)")
    parser.add_argument("--tokens", type=int, help="of an answer, at most (160)")
    parser.add_argument("--quick", action="store_true", help=QUICK_HELP)
    parser.add_argument("--context", type=int, default=2048, help="tokens (2048)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="(all cores)")
    parser.add_argument("--cache", metavar="NAME", help=CACHE_HELP)
    text = "begin no round after so long; the same command with the same --json goes on"
    parser.add_argument("--minutes", type=float, help=text)
    text = "measure those rounds of --json anew in which others used the machine"
    parser.add_argument("--redo-disturbed", action="store_true", help=text)
    text = "further options of aios, in one word"
    parser.add_argument("--aios-args", default="", metavar="OPTIONS", help=text)
    text = "further options of llama.cpp's speculative programs, in one word"
    parser.add_argument("--llama-args", default="", metavar="OPTIONS", help=text)
    parser.add_argument("--out", type=Path, help="write the table there instead of stdout")
    parser.add_argument("--json", type=Path, help="write all samples there; those there are kept")
    parser.add_argument("--plot", type=Path, help="write an SVG image there")
    text = "put table and plot into this page, between the lines that mark their place"
    parser.add_argument("--page", type=Path, help=text)
    options = parser.parse_args()
    for name, value in (QUICK if options.quick else FULL).items():
        if vars(options)[name] is None:
            setattr(options, name, value)
    if options.page:
        if not options.plot:
            parser.error("--page shows the image that --plot names")
        try:
            filled(options.page.read_text(encoding="utf-8"), "")
        except (OSError, ValueError) as error:
            parser.error(f"{options.page}: {error}")
    if min(options.rounds, options.threads, options.context) < 1 or options.tokens < 2:
        parser.error("--rounds, --threads and --context are at least 1, --tokens at least 2")
    if options.minutes is not None and not options.json:
        parser.error("--minutes needs --json, or the rounds are lost")
    return options


def engines(options: argparse.Namespace) -> tuple[Engine, dict[str, Engine]]:
    """aios and the peer's programs, by arm."""
    path = options.aios.absolute()
    aios = Engine("aios", path, path.is_file(), tuple(shlex.split(options.aios_args)))
    llama = {}
    for arm, program in PROGRAMS.items():
        path = ((options.llama or Path(MISSING)) / program).absolute()
        extra = () if arm == PEER_PLAIN else tuple(shlex.split(options.llama_args))
        llama[arm] = Engine(arm, path, options.llama is not None and path.is_file(), extra)
    return aios, llama


def settings(options: argparse.Namespace, version: str) -> dict[str, Any]:
    """What rounds must have in common to stand in one table."""
    names = ("tokens", "context", "threads", "aios_args", "llama_args")
    chosen = {name: vars(options)[name] for name in names}
    return {"aios": version, "with_llama": options.llama is not None, **chosen}


@dataclass
class Samples:
    """The rounds, and what was simulated, by the file of a model and the name of the caches."""

    units: list[Unit] = field(default_factory=list)
    simulated: dict[str, dict[str, simulated.Curve]] = field(default_factory=dict)

    @classmethod
    def earlier(cls, options: argparse.Namespace, wanted: dict[str, Any]) -> Samples:
        """What the samples' file has, if there is one."""
        if not options.json or not options.json.is_file():
            return cls()
        try:
            known = json.loads(options.json.read_text(encoding="utf-8"))
            if known["settings"] != wanted:
                raise SystemExit(f"{options.json} is of other settings: {known['settings']}")
            curves = {
                model: {
                    cache: {int(tokens): tuple(pair) for tokens, pair in curve.items()}
                    for cache, curve in of.items()
                }
                for model, of in known.get("simulated", {}).items()
            }
            return cls(list(known["units"]), curves)
        except (ValueError, KeyError, AttributeError) as error:
            raise SystemExit(f"{options.json} is no file of samples: {error!r}") from error

    def write(self, path: Path, wanted: dict[str, Any]) -> None:
        """Replaces the file as a whole, so that an interruption leaves the old or the new one."""
        data = {"settings": wanted, "simulated": self.simulated, "units": self.units}
        whole = path.with_name(path.name + ".new")
        whole.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        whole.replace(path)

    def curves(self, cache: str) -> dict[str, simulated.Curve]:
        """By the file of a model."""
        return {model: of[cache] for model, of in self.simulated.items() if cache in of}


def key(unit: Unit) -> tuple[Any, ...]:
    return tuple(unit[name] for name in ("model", "draft", "prompt", "round"))


def key_of(pair: Pair, prompt: Prompt, number: int) -> tuple[Any, ...]:
    return (pair.model.name, pair.draft.name if pair.draft else "", prompt.name, number)


def disturbed(unit: Unit) -> bool:
    """Whether others used the machine while an arm ran."""
    return any(arm.get("others", 0.0) > OTHERS_LIMIT for arm in unit["arms"].values())


def environment(bench: Bench, units: list[Unit], version: str) -> dict[str, str]:
    """The foot of the table."""
    options = bench.options
    facts = cpu_facts()
    processor = facts.get("model name", platform.processor() or platform.machine())
    told = {
        "processor": f"{processor}, {options.threads} of {os.cpu_count()} threads",
        "answers": f"greedy, at most {options.tokens} tokens, context {options.context}",
        "rounds": f"{max((unit['round'] for unit in units), default=0)}",
        "date": datetime.datetime.now().astimezone().isoformat(timespec="minutes"),
        "aios": f"{version}{' ' if bench.aios.extra else ''}{shlex.join(bench.aios.extra)}",
    }
    peer = bench.llama[PEER_LOOKUP]
    extra = f", options {shlex.join(peer.extra)}" if peer.extra else ""
    told["llama.cpp"] = (built(peer).removeprefix("; ") or "build not known") + extra
    if not peer.found:
        told["llama.cpp"] = MISSING
    samples = [arm["others"] for unit in units for arm in unit["arms"].values() if "others" in arm]
    if samples:
        middle = statistics.median(samples)
        above = sum(cores > OTHERS_LIMIT for cores in samples)
        said = f"{middle:.2f} cores during a run, more than {OTHERS_LIMIT} in {above} of "
        said += f"{len(samples)} runs"
        if middle > OTHERS_LIMIT:
            said += "; **the machine was not idle, and these speeds say nothing**"
        told["used by others"] = said
    return told


def warm_up(bench: Bench, pair: Pair, prompt: Prompt) -> None:
    """Reads the files into memory, repacks them, and lets aios time its passes, which it keeps."""
    file = bench.folder / "prompt.txt"
    file.write_bytes(bench.template(pair, prompt).encode())
    for arm in (AUTO, DRAFT) if pair.draft else (AUTO,):
        bench.run_aios(pair, arm, file)


def say(unit: Unit, progress: Progress) -> None:
    """A line of progress."""
    speeds = "  ".join(
        f"{arm} {sample['speed']:.1f}" if "speed" in sample else f"{arm}: {sample['absent']}"
        for arm, sample in unit["arms"].items()
    )
    place = f"{unit['model']} {unit['prompt']} round {unit['round']}"
    print(f"{progress}  {place}  {speeds}", file=sys.stderr, flush=True)


@dataclass
class Progress:
    """How many rounds there are to measure, and how many were measured, the latest by this run."""

    total: int
    done: int
    by_this_run: int = 0
    started: float = field(default_factory=time.monotonic)

    @property
    def minutes(self) -> float:
        return (time.monotonic() - self.started) / 60

    def advance(self) -> None:
        self.done += 1
        self.by_this_run += 1

    def __str__(self) -> str:
        left = (self.total - self.done) * self.minutes / max(1, self.by_this_run)
        return f"[{self.done} of {self.total}, about {left:.0f} min left]"


def measure(
    bench: Bench, prompts: list[Prompt], units: list[Unit], keep: Callable[[], None]
) -> bool:
    """Adds the rounds that are not there yet, as long as there is time; whether all are there. All
    prompts get their first round before one gets its second."""
    options = bench.options
    done = {key(unit) for unit in units if not (options.redo_disturbed and disturbed(unit))}
    turns = [
        (pair, prompt, number)
        for number in range(1, options.rounds + 1)
        for pair in options.pairs
        for prompt in prompts
    ]
    left = [turn for turn in turns if key_of(*turn) not in done]
    progress = Progress(len(turns), len(turns) - len(left))
    warm: set[tuple[Pair, int]] = set()
    for pair, prompt, number in left:
        if options.minutes is not None and progress.minutes >= options.minutes:
            print(f"{progress} out of time; the same command goes on", file=sys.stderr)
            return False
        if (pair, number) not in warm:
            warm_up(bench, pair, prompt)
            warm.add((pair, number))
        unit = bench.round(pair, prompt, number)
        units[:] = [old for old in units if key(old) != key(unit)] + [unit]
        progress.advance()
        say(unit, progress)
        keep()
    return True


def simulate(bench: Bench, samples: Samples, keep: Callable[[], None]) -> None:
    """Adds what is not simulated yet. A failure costs the column, not the table."""
    cache = bench.options.cache
    paths = [path for pair in bench.options.pairs for path in (pair.model, pair.draft) if path]
    measured = {unit[role] for unit in samples.units for role in ("model", "draft")}
    for path in paths if cache != "none" else []:
        known = samples.simulated.setdefault(path.name, {})
        if cache not in known and path.name in measured:
            try:
                known[cache] = simulated.simulate(run, bench.aios.path, path, cache)
                keep()
            except (RunFailed, ValueError, KeyError) as error:
                print(f"{path.name} is not simulated: {error}", file=sys.stderr)


def main() -> int:
    options = arguments()
    aios, llama = engines(options)
    if not aios.found:
        print(f"no such program: {aios.path}", file=sys.stderr)
        return 2
    version = run([str(aios.path), "--version"]).stdout.strip()
    wanted = settings(options, version)
    samples = Samples.earlier(options, wanted)
    prompts = read_prompts(options)

    def keep() -> None:
        # After each round, so that an interruption loses no other.
        if options.json:
            samples.write(options.json, wanted)

    finished = False
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(aios, llama, options, Path(folder))
        try:
            finished = measure(bench, prompts, samples.units, keep)
        except RunFailed as failure:
            print(failure, file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("interrupted; the table is of what there is", file=sys.stderr)
        if finished:
            simulate(bench, samples, keep)
    status = deliver(options, samples, environment(bench, samples.units, version))
    return status if status or finished else UNFINISHED


def filled(page: str, text: str) -> str:
    """`page` with `text` in the place that is marked for it."""
    before, begin, rest = page.partition(PAGE_BEGIN)
    _, end, after = rest.partition(PAGE_END)
    if not (begin and end):
        raise ValueError(f"no lines '{PAGE_BEGIN}' and '{PAGE_END}'")
    return f"{before}{begin}\n\n{text}\n{end}{after}"


def deliver(options: argparse.Namespace, samples: Samples, told: dict[str, str]) -> int:
    """Writes the table and the plot, and says what is wrong with aios."""
    if not samples.units:
        print("nothing was measured", file=sys.stderr)
        return 1
    curves = samples.curves(options.cache)
    if curves:
        told["simulated"] = f"`aios simulate --cache {options.cache}`, {simulated.DEPTH} positions"
    text = report(samples.units, curves, told)
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    elif not options.page:
        print(text, end="")
    if options.plot:
        options.plot.write_text(plot(samples.units, curves), encoding="utf-8")
    if options.page:
        image = os.path.relpath(options.plot, options.page.parent)
        shown = f"![Tokens per pass and MB per token by class of prompts]({image})\n\n{text}"
        page = options.page.read_text(encoding="utf-8")
        options.page.write_text(filled(page, shown), encoding="utf-8")
    wrong = faults(samples.units)
    for fault in wrong:
        print(f"FAULT: {fault}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
