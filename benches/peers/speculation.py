#!/usr/bin/env python3
"""What speculative decoding gives on real prompts, in aios and in llama.cpp.

Needs built programs only. Usage:

    python3 benches/peers/speculation.py --aios target/release/aios --llama DIR/bin \\
        [--rounds 3] [--tokens 160] [--threads 2] [--minutes M] [--out FILE.md] \\
        [--json FILE.json] [--plot FILE.svg] [--cache NAME] MODEL[,DRAFT]...

README.md in this folder says what is compared and what the columns mean.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable

import simulated
from compare import OTHERS_LIMIT, Engine, Others, RunFailed, built, cpu_facts
from speculation_report import (
    AUTO, DRAFT, MISSING, OFF, PEER_DRAFT, PEER_LOOKUP, PEER_PLAIN, Arm, Unit, faults, plot, report,
)  # fmt: skip

PROMPTS = Path(__file__).parents[2] / "validation" / "data" / "speculation_prompts.jsonl"

PROGRAMS = {
    PEER_PLAIN: "llama-completion",
    PEER_LOOKUP: "llama-lookup",
    PEER_DRAFT: "llama-speculative-simple",
}

# A run that takes longer than this hangs.
TIMEOUT_S = 900

CACHE_HELP = "whose caches are simulated, a name of aios simulate, or none (server-32mb)"

# What the peers say about themselves on stderr.
PEER_EVAL = re.compile(r"(?<!prompt )eval time = +([\d.]+) ms / +(\d+) runs")
PEER_SAMPLING = re.compile(r"sampling time = +([\d.]+) ms")
PEER_DECODED = re.compile(r"decoded +(\d+) tokens in +([\d.]+) seconds")
PEER_COUNT = re.compile(r"(n_drafted|n_accept) *= *(\d+)")


@dataclass(frozen=True)
class Prompt:
    """A message of a user, and what kind of answer it asks for."""

    kind: str
    name: str
    user: str


@dataclass(frozen=True)
class Pair:
    """A model and, if there is one, the model that drafts for it."""

    model: Path
    draft: Path | None

    @classmethod
    def parse(cls, words: str) -> Pair:
        model, _, draft = words.partition(",")
        pair = cls(Path(model), Path(draft) if draft else None)
        for path in (pair.model, pair.draft):
            if path is not None and not path.is_file():
                raise argparse.ArgumentTypeError(f"no such file: {path}")
        return pair

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms of a round, in the order in which they run."""
        if self.draft is None:
            return (OFF, PEER_PLAIN, AUTO, PEER_LOOKUP)
        return (OFF, PEER_PLAIN, AUTO, PEER_LOOKUP, DRAFT, PEER_DRAFT)


@dataclass
class Said:
    """What a program printed."""

    stdout: str
    stderr: str


def run(command: list[str]) -> Said:
    """Runs a command to its end. Its last word on stderr explains a failure."""
    name = Path(command[0]).name
    try:
        done = subprocess.run(
            command, capture_output=True, stdin=subprocess.DEVNULL, timeout=TIMEOUT_S
        )
    except OSError as error:
        raise RunFailed(f"{name}: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise RunFailed(f"{name} took longer than {TIMEOUT_S} s") from error
    # A limit on tokens may cut a character in two.
    said = Said(*(stream.decode("utf-8", "replace") for stream in (done.stdout, done.stderr)))
    if done.returncode != 0:
        last = said.stderr.strip().splitlines() or ["nothing on stderr"]
        raise RunFailed(f"{name} ended with {done.returncode}: {last[-1]}")
    return said


def found(pattern: re.Pattern[str], said: Said) -> re.Match[str]:
    """The last place of a pattern on stderr: the peers tell of the draft model first."""
    matches = list(pattern.finditer(said.stderr))
    if not matches:
        raise RunFailed(f"a report without '{pattern.pattern}'")
    return matches[-1]


def speed(tokens: int, seconds: float) -> float:
    """Tokens per second after the first, which the prompt's pass gives in every program."""
    if tokens < 2 or seconds <= 0:
        raise RunFailed("an answer too short to be timed")
    return (tokens - 1) / seconds


@dataclass
class Bench:
    """The programs and the circumstances that all runs share."""

    aios: Engine
    llama: dict[str, Engine]
    options: argparse.Namespace
    folder: Path
    others: list[float] = field(default_factory=list)

    def template(self, pair: Pair, prompt: Prompt) -> str:
        """The prompt as the model is given it, without the token that begins a text: every program
        puts that in front by itself if the model asks for it."""
        messages = self.folder / "messages.json"
        content = [{"role": "user", "content": prompt.user}]
        messages.write_text(json.dumps(content), encoding="utf-8")
        command = [str(self.aios.path), "template", "-m", str(pair.model), "--bos", ""]
        return run([*command, "--messages", str(messages), "--add-generation-prompt"]).stdout

    def common(self, pair: Pair) -> list[str]:
        options = self.options
        return [
            "-m", str(pair.model), "-n", str(options.tokens), "-c", str(options.context),
            "-t", str(options.threads), "--temp", "0",
        ]  # fmt: skip

    def run_aios(self, pair: Pair, arm: str, file: Path) -> Arm:
        command = [str(self.aios.path), "run", *self.common(pair), "-f", str(file)]
        command += ["--stats", "json", "--spec", "off" if arm == OFF else "auto", *self.aios.extra]
        command += ["-md", str(pair.draft)] if arm == DRAFT else []
        said = run(command)
        lines = said.stderr.strip().splitlines() or [""]
        try:
            stats = json.loads(lines[-1])
            return self.read_stats(stats, said.stdout)
        except (ValueError, KeyError, TypeError) as error:
            raise RunFailed(f"aios's statistics have another form: {error!r}") from error

    @staticmethod
    def read_stats(stats: dict[str, Any], output: str) -> Arm:
        if stats["mb_per_token"]["source"] != "counted":
            raise RunFailed("aios did not count its bytes")
        spec = stats["spec_decode"] or {}
        if spec.get("failure"):
            raise RunFailed(f"a drafter of aios failed: {spec['failure']}")
        tokens = stats["generated_tokens"]
        phases = {
            of["phase"]: of["weights"] + of["kv_read"]
            for of in stats["bytes"]
            if of["phase"] != "prefill"
        }
        end = f"{stats['stop_reason']} after {tokens}"
        return {
            "tokens": tokens,
            "speed": speed(tokens, stats["decode_ms"] / 1e3),
            "mb_per_token": stats["mb_per_token"]["value"],
            "phases": phases,
            "tokens_per_pass": spec.get("tokens_per_pass", 1.0 if not spec else None),
            "accept_rate": spec.get("accept_rate"),
            "drafted": spec.get("drafted", 0),
            "accepted": spec.get("accepted", 0),
            "lengths": spec.get("lengths", []),
            "drafters": spec.get("drafters", []),
            "draft_ms": spec.get("draft_ms", 0.0),
            "verify_ms": spec.get("verify_ms", 0.0),
            "decode_ms": stats["decode_ms"],
            "prefill_ms": stats["prefill_ms"],
            # Not the text itself, which would make the file long.
            "output": hashlib.sha256(f"{end}\n{output}".encode()).hexdigest(),
        }

    def run_peer(self, pair: Pair, arm: str, file: Path) -> tuple[Arm, str]:
        """A sample and the output, which begins with the prompt where nothing prevents that."""
        engine = self.llama[arm]
        if not engine.found:
            return {"absent": MISSING}, ""
        # As a binary file, since the last newline would be cut off of a text.
        command = [str(engine.path), *self.common(pair), "-bf", str(file), "--no-escape"]
        if arm == PEER_PLAIN:
            said = run([*command, "-no-cnv", "--no-display-prompt", *engine.extra])
            milliseconds, count = found(PEER_EVAL, said).groups()
            sampling = float(found(PEER_SAMPLING, said)[1])
            # The peer counts passes here, of which the prompt's was another.
            tokens = int(count) + 1
            seconds = (float(milliseconds) + sampling) / 1e3
            return {"tokens": tokens, "speed": speed(tokens, seconds)}, said.stdout
        if arm == PEER_DRAFT:
            command += ["--spec-type", "draft-simple", "-md", str(pair.draft)]
            command += ["-td", str(self.options.threads)]
        said = run([*command, *engine.extra])
        count, taken = found(PEER_DECODED, said).groups()
        counts = {name: int(number) for name, number in PEER_COUNT.findall(said.stderr)}
        drafted, accepted = counts.get("n_drafted", 0), counts.get("n_accept", 0)
        return {
            "tokens": int(count),
            "speed": speed(int(count), float(taken)),
            "drafted": drafted,
            "accepted": accepted,
            "accept_rate": accepted / drafted if drafted else None,
        }, said.stdout

    def round(self, pair: Pair, prompt: Prompt, number: int) -> Unit:
        """One run of each arm, so that a change of the machine's load meets them all."""
        text = self.template(pair, prompt)
        file = self.folder / "prompt.txt"
        file.write_bytes(text.encode())
        arms: dict[str, Arm] = {}
        plain = ""
        for arm in pair.arms:
            try:
                with Others() as others:
                    if arm in self.llama:
                        sample, output = self.run_peer(pair, arm, file)
                    else:
                        sample, output = self.run_aios(pair, arm, file), ""
            except RunFailed as failure:
                # A table that is published should not tell where the file lay.
                reason = str(failure).replace(f"{pair.model.parent}{os.sep}", "")
                sample, output = {"absent": reason}, ""
            if arm == PEER_PLAIN:
                plain = output
            elif arm in self.llama and "speed" in sample and plain:
                sample["same_as_plain"] = same_answer(plain, output, text)
            if others.cores is not None and "speed" in sample:
                sample["others"] = others.cores
            arms[arm] = sample
        return {
            "model": pair.model.name,
            "draft": pair.draft.name if pair.draft else "",
            "prompt": prompt.name,
            "class": prompt.kind,
            "round": number,
            "arms": arms,
        }


def same_answer(plain: str, output: str, prompt: str) -> bool | None:
    """Whether a peer's answer is its plain one, as far as both go; None if it cannot be found.

    Blank space at the ends is left out, since the programs add some of their own, and so is a
    note of the end that only one of them makes.
    """
    last_line = prompt.rstrip().splitlines()[-1]
    _, line, answer = output.rpartition(last_line)
    if not line:
        return None
    one, other = (text.replace("[end of text]", "").strip() for text in (plain, answer))
    shorter = min(len(one), len(other))
    # The last characters may be a part of what one limit on tokens cut off and another did not.
    kept = max(0, shorter - 1)
    return one[:kept] == other[:kept]


# The command line.


def read_prompts(path: Path, classes: list[str], limit: int) -> list[Prompt]:
    """The prompts of a file, an object a line; of each class the first `limit`, 0 for all.

    They come in turns of a prompt of each class, so that an interrupted run has some of all.
    """
    prompts: list[tuple[int, Prompt]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            entry = json.loads(line)
            prompt = Prompt(entry["class"], entry["id"], entry["user"])
        except (ValueError, KeyError, TypeError) as error:
            raise SystemExit(f"{path}, line {number}: {error!r}") from error
        turn = sum(known.kind == prompt.kind for _, known in prompts)
        if (not classes or prompt.kind in classes) and (limit == 0 or turn < limit):
            prompts.append((turn, prompt))
    if not prompts:
        raise SystemExit(f"{path} has no prompts of the classes {', '.join(classes)}")
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
    parser.add_argument("--limit", type=int, default=0, help=text)
    parser.add_argument("--rounds", type=int, default=3, help="(3)")
    parser.add_argument("--tokens", type=int, default=160, help="of an answer, at most (160)")
    parser.add_argument("--context", type=int, default=2048, help="tokens (2048)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="(all cores)")
    parser.add_argument("--cache", default="server-32mb", metavar="NAME", help=CACHE_HELP)
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
    options = parser.parse_args()
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


def say(unit: Unit) -> None:
    """A line of progress."""
    speeds = "  ".join(
        f"{arm} {sample['speed']:.1f}" if "speed" in sample else f"{arm}: {sample['absent']}"
        for arm, sample in unit["arms"].items()
    )
    place = f"{unit['model']} {unit['prompt']} round {unit['round']}"
    print(f"{place}  {speeds}", file=sys.stderr, flush=True)


def measure(
    bench: Bench, prompts: list[Prompt], units: list[Unit], keep: Callable[[], None]
) -> None:
    """Adds the rounds that are not there yet, as long as there is time. All prompts get their
    first round before one gets its second."""
    started = time.monotonic()
    options = bench.options
    done = {key(unit) for unit in units if not (options.redo_disturbed and disturbed(unit))}
    for number in range(1, options.rounds + 1):
        for pair in options.pairs:
            names = (pair.model.name, pair.draft.name if pair.draft else "")
            left = [p for p in prompts if (*names, p.name, number) not in done]
            for place, prompt in enumerate(left):
                minutes = (time.monotonic() - started) / 60
                if options.minutes is not None and minutes >= options.minutes:
                    print("out of time; the same command goes on", file=sys.stderr)
                    return
                if place == 0:
                    warm_up(bench, pair, prompt)
                unit = bench.round(pair, prompt, number)
                units[:] = [old for old in units if key(old) != key(unit)] + [unit]
                say(unit)
                keep()


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
    prompts = read_prompts(options.prompts, options.classes, options.limit)

    def keep() -> None:
        # After each round, so that an interruption loses no other.
        if options.json:
            samples.write(options.json, wanted)

    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(aios, llama, options, Path(folder))
        try:
            measure(bench, prompts, samples.units, keep)
        except RunFailed as failure:
            print(failure, file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("interrupted; the table is of what there is", file=sys.stderr)
        simulate(bench, samples, keep)
    return deliver(options, samples, environment(bench, samples.units, version))


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
    else:
        print(text, end="")
    if options.plot:
        options.plot.write_text(plot(samples.units, curves), encoding="utf-8")
    wrong = faults(samples.units)
    for fault in wrong:
        print(f"FAULT: {fault}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
