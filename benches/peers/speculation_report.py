"""What speculation.py measured, as a table, verdicts and a plot."""

from __future__ import annotations

import math
import random
import statistics
from dataclasses import dataclass, field
from html import escape
from typing import Any, Callable, Iterable

from compare import CONFIDENCE, SEED
from simulated import Curve, mb_per_token

OFF, AUTO, DRAFT = "off", "auto", "draft"
PEER_PLAIN, PEER_LOOKUP, PEER_DRAFT = "llama.cpp plain", "llama.cpp look-up", "llama.cpp draft"

# What a mode of aios is held against: the peer's mode that has the same means.
RIVAL = {AUTO: PEER_LOOKUP, DRAFT: PEER_DRAFT}
MODES = {AUTO: "`--spec auto`", DRAFT: "with draft model"}

# What the project promises itself. Shares of plain decoding's speed and bytes.
SPEED_MIN = 0.97
PEER_MIN = 1.0
DRAFTED_MIN = 1.0
# These were set for one model, which is known by its file's name.
BIG_MODEL = "1.5b"
EDIT_SPEED_MIN = 2.5
EDIT_BYTES_MAX = 0.30
CHAT_BYTES_MAX = {AUTO: 0.87, DRAFT: 0.85}

MISSING, NONE = "missing", "–"
# Of several, the first of these is the row's.
STATES = ("missed", "undecided", "unknown", "met")

# A unit is one round of one prompt with one pair of files: every arm's sample, by the arm's name.
Unit = dict[str, Any]
Arm = dict[str, Any]
# What was simulated, by the file of a model.
Curves = dict[str, Curve]


# What the other prompts were not: nothing was set by these.
HELD_OUT = "held-out"

# Fewer than compare.py's, since a page has hundreds of intervals.
RESAMPLES = 2000


@dataclass(frozen=True)
class Spread:
    """The median over prompts with its bootstrap interval, and the lowest."""

    median: float
    low: float
    high: float
    least: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread | None:
        known = list(values)
        if not known:
            return None
        # Its own generator, so that an interval does not depend on what else is computed.
        generator = random.Random(SEED)
        medians = sorted(
            statistics.median(generator.choices(known, k=len(known))) for _ in range(RESAMPLES)
        )
        tail = round(RESAMPLES * (1 - CONFIDENCE) / 2)
        return cls(statistics.median(known), medians[tail], medians[-tail - 1], min(known))


@dataclass(frozen=True)
class Check:
    """A target of a row: met if the whole interval is within it, missed if none of it is."""

    text: str
    state: str

    @classmethod
    def least(cls, what: str, target: float, found: Spread | None) -> Check:
        state = "unknown"
        if found is not None:
            state = "missed" if found.high < target else "undecided"
            state = "met" if found.low >= target else state
        return cls(f"{what} ≥ {target:.2f}", state)

    @classmethod
    def most(cls, what: str, target: float, found: Spread | None) -> Check:
        state = "unknown"
        if found is not None:
            state = "missed" if found.low > target else "undecided"
            state = "met" if found.high <= target else state
        return cls(f"{what} ≤ {target:.2f}", state)


@dataclass
class Row:
    """A class of prompts with a pair of files in one mode."""

    model: str
    draft: str
    mode: str
    kind: str
    prompts: int
    tokens_s: Spread | None = None
    tokens_s_plain: Spread | None = None
    speed: Spread | None = None
    speed_where_drafted: Spread | None = None
    mb: Spread | None = None
    mb_plain: Spread | None = None
    bytes: Spread | None = None
    simulated_mb: Spread | None = None
    simulated_mb_plain: Spread | None = None
    simulated_bytes: Spread | None = None
    tokens_per_pass: Spread | None = None
    accepted: Spread | None = None
    peer_tokens_s: Spread | None = None
    peer_tokens_s_plain: Spread | None = None
    peer_gain: Spread | None = None
    peer: Spread | None = None
    peer_absent: str = NONE
    checks: list[Check] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        states = [check.state for check in self.checks]
        state = next((s for s in STATES if s in states), "unknown")
        each = "; ".join(f"{check.text}: {check.state}" for check in self.checks)
        return f"**{state}** ({each})"


def has(unit: Unit, arm: str) -> bool:
    return "speed" in unit["arms"].get(arm, {})


def per_prompt(
    units: list[Unit], arms: tuple[str, ...], value: Callable[..., float | None]
) -> list[float]:
    """The median over rounds of `value` of the arms' samples, for each prompt that has them."""
    found: dict[str, list[float]] = {}
    for unit in units:
        if all(has(unit, arm) for arm in arms):
            number = value(*(unit["arms"][arm] for arm in arms))
            if number is not None:
                found.setdefault(unit["prompt"], []).append(number)
    return [statistics.median(numbers) for numbers in found.values()]


def faster(one: Arm, other: Arm) -> float:
    """The ratio of speeds."""
    return one["speed"] / other["speed"]


def row(units: list[Unit], mode: str, curves: Curves) -> Row:
    """What one mode does with the prompts of a class."""
    first = units[0]
    prompts = len({unit["prompt"] for unit in units})
    rival = RIVAL[mode]
    made = Row(first["model"], first["draft"], mode, first["class"], prompts)

    def tokens_s(arm: str) -> Spread | None:
        return Spread.of(per_prompt(units, (arm,), lambda sample: sample["speed"]))

    made.tokens_s, made.tokens_s_plain = tokens_s(mode), tokens_s(OFF)
    made.peer_tokens_s, made.peer_tokens_s_plain = tokens_s(rival), tokens_s(PEER_PLAIN)
    made.speed = Spread.of(per_prompt(units, (mode, OFF), faster))
    drafted = [unit for unit in units if unit["arms"].get(mode, {}).get("drafted")]
    made.speed_where_drafted = Spread.of(per_prompt(drafted, (mode, OFF), faster))
    made.mb = Spread.of(per_prompt(units, (mode,), lambda arm: arm["mb_per_token"]))
    made.mb_plain = Spread.of(per_prompt(units, (OFF,), lambda arm: arm["mb_per_token"]))
    made.bytes = Spread.of(
        per_prompt(units, (mode, OFF), lambda arm, off: arm["mb_per_token"] / off["mb_per_token"])
    )
    add_simulated(made, units, curves)
    passes = per_prompt(units, (mode,), lambda arm: arm["tokens_per_pass"])
    made.tokens_per_pass = Spread.of(passes)
    made.accepted = Spread.of(per_prompt(units, (mode,), lambda arm: arm["accept_rate"]))
    made.peer_gain = Spread.of(per_prompt(units, (rival, PEER_PLAIN), faster))
    made.peer = Spread.of(per_prompt(units, (mode, rival), faster))
    if made.peer is None:
        reasons = {unit["arms"].get(rival, {}).get("absent", MISSING) for unit in units}
        made.peer_absent = MISSING if reasons == {MISSING} else "failed"
    made.checks = checks(made)
    return made


def add_simulated(made: Row, units: list[Unit], curves: Curves) -> None:
    """What the passes of the runs come to in simulated bytes."""
    target, draft = curves.get(made.model), curves.get(made.draft)

    def mb(arm: Arm) -> float | None:
        return mb_per_token(arm, target, draft)

    def over(arm: Arm, off: Arm) -> float | None:
        one, other = mb(arm), mb(off)
        return one / other if one is not None and other else None

    made.simulated_mb = Spread.of(per_prompt(units, (made.mode,), mb))
    made.simulated_mb_plain = Spread.of(per_prompt(units, (OFF,), mb))
    made.simulated_bytes = Spread.of(per_prompt(units, (made.mode, OFF), over))


def checks(made: Row) -> list[Check]:
    """The targets of a row."""
    found = [Check.least("speed", SPEED_MIN, made.speed)]
    big = BIG_MODEL in made.model.lower()
    if big and made.kind == "edit":
        found = [Check.least("speed", EDIT_SPEED_MIN, made.speed)]
        found.append(Check.most("bytes", EDIT_BYTES_MAX, made.bytes))
        found.append(Check.most("simulated bytes", EDIT_BYTES_MAX, made.simulated_bytes))
    if made.kind == "chat":
        if big:
            found.append(Check.most("bytes", CHAT_BYTES_MAX[made.mode], made.bytes))
        if made.speed_where_drafted:
            found.append(Check.least("speed if drafted", DRAFTED_MIN, made.speed_where_drafted))
    found.append(Check.least("peer", PEER_MIN, made.peer))
    return found


def rows(units: list[Unit], curves: Curves) -> list[Row]:
    """A row for each pair of files, mode and class, in the order of the runs."""
    groups: dict[tuple[str, str, str], list[Unit]] = {}
    for unit in units:
        for mode in (AUTO, DRAFT) if unit["draft"] else (AUTO,):
            key = (unit["model"], mode, unit["class"])
            groups.setdefault(key, []).append(unit)
    order = list(dict.fromkeys((model, mode) for model, mode, _ in groups))
    ordered = sorted(groups.items(), key=lambda item: order.index(item[0][:2]))
    return [row(members, mode, curves) for (_, mode, _), members in ordered]


# The table.


COLUMNS = (
    "file", "mode", "class", "prompts", "tok/s, plain and drafted", "speed / plain",
    "slowest prompt", "MB/token, counted", "counted / plain", "MB/token, simulated",
    "simulated / plain", "tokens per pass", "accepted", "llama.cpp's tok/s, plain and drafted",
    "llama.cpp's / its plain", "aios / llama.cpp's", "verdict",
)  # fmt: skip


def wide(spread: Spread | None) -> str:
    return f"{spread.median:.2f} [{spread.low:.2f}, {spread.high:.2f}]" if spread else NONE


def both(one: Spread | None, other: Spread | None, digits: int) -> str:
    """Two medians, plain decoding's first."""
    if one is None or other is None:
        return NONE
    return f"{one.median:.{digits}f}, {other.median:.{digits}f}"


def cells(made: Row) -> list[str]:
    mode = MODES[made.mode] + (f" {made.draft}" if made.mode == DRAFT else "")
    absent = made.peer_absent
    return [
        made.model, mode, made.kind, str(made.prompts),
        both(made.tokens_s_plain, made.tokens_s, 1), wide(made.speed),
        f"{made.speed.least:.2f}" if made.speed else NONE,
        both(made.mb_plain, made.mb, 0), wide(made.bytes),
        both(made.simulated_mb_plain, made.simulated_mb, 0), wide(made.simulated_bytes),
        wide(made.tokens_per_pass), f"{made.accepted.median:.0%}" if made.accepted else NONE,
        both(made.peer_tokens_s_plain, made.peer_tokens_s, 1),
        wide(made.peer_gain) if made.peer_gain else absent,
        wide(made.peer) if made.peer else absent, made.verdict,
    ]  # fmt: skip


HELD_OUT_COLUMNS = ("speed / plain", "counted / plain", "tokens per pass", "aios / llama.cpp's")


def held_out(units: list[Unit], curves: Curves) -> list[str]:
    """The same of the prompts by which nothing was set."""
    made = rows([unit for unit in units if unit.get("set") == HELD_OUT], curves)
    if not made:
        return []
    lines = [f"The {HELD_OUT} prompts alone, by which no setting was chosen:", ""]
    columns = ("file", "mode", "class", "prompts", *HELD_OUT_COLUMNS)
    lines += ["| " + " | ".join(columns) + " |", "|---|---|---|" + "---:|" * 5]
    for of in made:
        figures = (of.speed, of.bytes, of.tokens_per_pass, of.peer)
        found = [of.model, MODES[of.mode], of.kind, str(of.prompts), *map(wide, figures)]
        lines.append("| " + " | ".join(found) + " |")
    return [*lines, ""]


def faults(units: list[Unit]) -> list[str]:
    """Prompts whose output depended on drafting, and runs of aios that failed."""
    found = []
    for unit in units:
        place = f"{unit['model']}, {unit['prompt']}, round {unit['round']}"
        arms = {arm: unit["arms"].get(arm, {}) for arm in (OFF, AUTO, DRAFT)}
        found += [f"{place}: {a['absent']}" for a in arms.values() if "absent" in a]
        outputs = {arm["output"] for arm in arms.values() if "output" in arm}
        if len(outputs) > 1:
            found.append(f"{place}: the output with drafts is not that without")
    return found


def divergences(units: list[Unit]) -> list[str]:
    """How often the peer's speculation gave another text than its plain decoding."""
    lines = []
    for arm in (PEER_LOOKUP, PEER_DRAFT):
        prompts: dict[tuple[str, str], bool] = {}
        for unit in units:
            same = unit["arms"].get(arm, {}).get("same_as_plain")
            if same is not None:
                key = (unit["model"], unit["prompt"])
                prompts[key] = prompts.get(key, True) and same
        if prompts:
            other = sum(not same for same in prompts.values())
            lines.append(f"{arm}: another text than its plain decoding for {other} of "
                         f"{len(prompts)} prompts.")  # fmt: skip
    return lines


def report(units: list[Unit], curves: Curves, told: dict[str, str]) -> str:
    """The page: table, what it means, faults, and the circumstances."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---|---|---|" + "---:|" * 13 + "---|"]
    for made in rows(units, curves):
        lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells(made)) + " |")
    lines += ["", "Medians over the prompts of a class, a prompt's figure being the median of its"]
    lines += [f"rounds; in brackets the {CONFIDENCE:.0%} bootstrap interval over the prompts. A"]
    lines += ["target is met if its whole interval is, and missed if none of it is. MB/token is"]
    lines += ["without the prompt's."]
    wrong = faults(units)
    if wrong:
        lines += ["", "**Faults of aios**:", "", *(f"- {fault}" for fault in wrong)]
    else:
        lines += ["", "The output of aios is the same with and without drafts in every run."]
    lines += [line for said in divergences(units) for line in ("", said)]
    lines += ["", *held_out(units, curves), *guesses(units), *absences(units)]
    lines += [f"- {key}: {value}" for key, value in told.items()]
    return "\n".join(lines) + "\n"


def guesses(units: list[Unit]) -> list[str]:
    """How often look-up's guesses were right, by kind and class: what lengths are chosen by."""
    classes = list(dict.fromkeys(unit["class"] for unit in units))
    lines = []
    for model in dict.fromkeys(unit["model"] for unit in units):
        counts: dict[str, dict[str, list[int]]] = {}
        for unit in units:
            drafters = unit["arms"].get(AUTO, {}).get("drafters", [])
            kinds = [kind for of in drafters for kind in of.get("kinds", [])]
            for kind in kinds if unit["model"] == model else []:
                known = counts.setdefault(kind["name"], {}).setdefault(unit["class"], [0, 0])
                known[0] += kind["right"]
                known[1] += kind["guesses"]
        if counts:
            lines += [f"| look-up's guess, {model} | " + " | ".join(classes) + " |"]
            lines += ["|---|" + "---:|" * len(classes)]
        for name, by_class in counts.items():
            shares = (by_class.get(kind, [0, 0]) for kind in classes)
            cells = (f"{right / all:.2f} of {all}" if all else NONE for right, all in shares)
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        lines += [""] if counts else []
    return lines


def absences(units: list[Unit]) -> list[str]:
    """Why a peer has no figures."""
    reasons: dict[str, int] = {}
    for unit in units:
        for arm in (PEER_PLAIN, PEER_LOOKUP, PEER_DRAFT):
            reason = unit["arms"].get(arm, {}).get("absent")
            if reason:
                text = f"- {arm}, {unit['model']}: {reason}"
                reasons[text] = reasons.get(text, 0) + 1
    lines = [f"{text} ({count} runs)" for text, count in sorted(reasons.items())]
    return ["Peers without figures:", "", *lines, ""] if lines else []


# The plot: a line of two panels for each model, bars by class.


COLOURS = {OFF: "#b8b8b8", AUTO: "#2f6fb0", DRAFT: "#d9822b"}
LEGEND = {OFF: "plain", AUTO: "auto, look-up", DRAFT: "auto, look-up and draft model"}
PANEL_W, PANEL_H = 400, 190
LEFT, TOP, GAP, BELOW = 56, 58, 60, 62


def text(x: float, y: float, words: str, anchor: str = "middle", size: int = 12) -> str:
    return (f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">'
            f"{escape(words)}</text>")  # fmt: skip


def tick_step(top: float) -> float:
    """The smallest round distance of at most five lines up to `top`."""
    power = 10.0 ** math.floor(math.log10(top))
    return next(step * power for step in (0.2, 0.5, 1, 2) if top <= 5 * step * power)


Bars = dict[str, dict[str, float]]


def panel(x: float, y: float, title: str, bars: Bars) -> list[str]:
    """Bars by class and mode, from zero, with the values above them."""
    top = 1.12 * max((value for of in bars.values() for value in of.values()), default=1.0)
    out = [text(x, y - 10, title, "start", 13)]
    step = tick_step(top)
    for line in range(int(top / step) + 1):
        at = y + PANEL_H * (1 - line * step / top)
        out.append(f'<path d="M{x} {at:.1f}h{PANEL_W}" stroke="#ddd"/>')
        out.append(text(x - 6, at + 4, f"{line * step:g}", "end", 11))
    slot = PANEL_W / max(1, len(bars))
    for number, (kind, of) in enumerate(bars.items()):
        width = 0.8 * slot / max(1, len(of))
        begin = x + slot * (number + 0.1)
        for place, (mode, value) in enumerate(of.items()):
            height = PANEL_H * value / top
            at = begin + place * width
            out.append(f'<rect x="{at:.1f}" y="{y + PANEL_H - height:.1f}" width="{width - 1:.1f}" '
                       f'height="{height:.1f}" fill="{COLOURS[mode]}"/>')  # fmt: skip
            shown = f"{value:.1f}" if value < 20 else f"{value:.0f}"
            out.append(text(at + width / 2, y + PANEL_H - height - 3, shown, size=9))
        out.append(text(x + slot * (number + 0.5), y + PANEL_H + 16, kind))
    return out


def plot(units: list[Unit], curves: Curves) -> str:
    """Tokens per pass and MB per token by class of prompts, as an SVG image."""
    by_model: dict[str, list[Row]] = {}
    for made in rows(units, curves):
        by_model.setdefault(made.model, []).append(made)
    panels = 3 if curves else 2
    width = LEFT + panels * PANEL_W + (panels - 1) * GAP + 20
    height = TOP + len(by_model) * (PANEL_H + BELOW)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
           f'width="{width}" height="{height}" font-family="sans-serif">',
           f'<rect width="{width}" height="{height}" fill="white"/>']  # fmt: skip
    for number, (mode, words) in enumerate(LEGEND.items()):
        at = LEFT + number * 150
        out.append(f'<rect x="{at}" y="10" width="12" height="12" fill="{COLOURS[mode]}"/>')
        out.append(text(at + 18, 20, words, "start"))
    for number, (model, of_model) in enumerate(by_model.items()):
        y = TOP + number * (PANEL_H + BELOW)
        passes: Bars = {}
        mb: Bars = {}
        simulated: Bars = {}
        for made in of_model:
            if made.mb_plain:
                passes.setdefault(made.kind, {OFF: 1.0})
                mb.setdefault(made.kind, {OFF: made.mb_plain.median})
            if made.mb and made.tokens_per_pass:
                passes.setdefault(made.kind, {})[made.mode] = made.tokens_per_pass.median
                mb.setdefault(made.kind, {})[made.mode] = made.mb.median
            if made.simulated_mb and made.simulated_mb_plain:
                simulated.setdefault(made.kind, {OFF: made.simulated_mb_plain.median})
                simulated[made.kind][made.mode] = made.simulated_mb.median
        out += panel(LEFT, y, f"{model}: tokens per pass", passes)
        out += panel(LEFT + PANEL_W + GAP, y, "MB/token (counted)", mb)
        if curves:
            out += panel(LEFT + 2 * (PANEL_W + GAP), y, "MB/token (simulated)", simulated)
    return "\n".join([*out, "</svg>"]) + "\n"
