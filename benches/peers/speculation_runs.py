"""One round of speculation.py: a prompt answered by aios and by llama.cpp, plainly and drafted."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compare import Engine, Others, RunFailed
from speculation_report import (
    AUTO, DRAFT, MISSING, OFF, PEER_DRAFT, PEER_LOOKUP, PEER_PLAIN, Arm, Unit,
)  # fmt: skip

PROGRAMS = {
    PEER_PLAIN: "llama-completion",
    PEER_LOOKUP: "llama-lookup",
    PEER_DRAFT: "llama-speculative-simple",
}

# A run that takes longer than this hangs.
TIMEOUT_S = 900

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
    set: str


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
            "set": prompt.set,
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
