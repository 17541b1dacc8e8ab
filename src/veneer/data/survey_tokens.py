"""What a base's tokenizer makes of the texts: lengths, what `max_length` cuts, unknown tokens, scripts it has not learned.

Knows tokenizers; knows no labels and no model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veneer.data.problems import shown
from veneer.data.prompt import Prompt
from veneer.data.read import Reading
from veneer.data.survey_finding import SERIOUS_SHARE, Finding, Severity, percent, samples
from veneer.data.survey_scripts import CHINESE, Coverage, ScriptUse, coverage
from veneer.data.tokens import encode
from veneer.data.types import Example

MOST_COVERED = 2000  # texts of a split whose scripts and unknown tokens are looked at
UNLEARNED = 0.8  # known share of a script's letters below which the base has not learned it
FOREIGN, MANY_FOREIGN = 0.01, 0.1  # share of texts in such a script: worth a warning, an error
UNKNOWN_SHARE = 0.01
QUANTILE = 99  # per cent of the texts that a suggested length leaves whole
_NO_LIMIT = 1 << 30
SEED = 0


@dataclass(frozen=True)
class Tokenization:
    """A base's tokenizer, the longest text the run takes, and the longest the base can take (None: no limit), in tokens.

    With a `prompt` a text's length is that of the prompt it stands in.
    """

    tokenizer: Any
    max_length: int
    limit: int | None
    prompt: Prompt | None = None


@dataclass(frozen=True)
class TokenFacts:
    """Lengths of a split's texts in tokens, special ones included, and shares.

    Attributes:
        cut: texts longer than `max_length`.
        looked_at: texts in the sample behind `unknown` and `scripts`.
        unknown: share of tokens that are the unknown one.
        scripts: name -> (share of the letters, share of those that the base knows), commonest first.
    """

    median: int
    p95: int
    longest: int
    cut: int
    looked_at: int
    unknown: float
    scripts: dict[str, tuple[float, float]]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        scripts = {name: {"letters": letters, "known": known} for name, (letters, known) in self.scripts.items()}
        return asdict(self) | {"scripts": scripts}


def survey_tokens(name: str, reading: Reading, by: Tokenization) -> tuple[TokenFacts, list[Finding]]:
    """The facts of a split called `name`, which has at least one row, and what is wrong with them."""
    examples = reading.examples
    pairs = None if examples[0].pair is None else [example.pair or "" for example in examples]
    lengths = encode(by.tokenizer, [example.text for example in examples], pairs, _NO_LIMIT, by.prompt).lengths
    lengths = lengths if by.prompt is None else by.prompt.reading_lengths(lengths)
    looked_at = _sample(examples)
    covered = coverage(by.tokenizer, [f"{one.text}\n{one.pair}" if one.pair is not None else one.text for one in looked_at])
    facts = _facts(lengths, covered, len(looked_at), by.max_length)
    findings = [*_cut(name, reading, lengths, by), *_scripts(name, reading, looked_at, covered)]
    if not any(finding.rule == "unlearned-script" for finding in findings):  # whose letters are the unknown tokens
        findings += _unknown(name, reading, looked_at, covered)
    return facts, findings


def _sample(examples: Sequence[Example]) -> list[Example]:
    if len(examples) <= MOST_COVERED:
        return list(examples)
    chosen = np.sort(np.random.default_rng(SEED).choice(len(examples), MOST_COVERED, replace=False))
    return [examples[i] for i in chosen.tolist()]


def _facts(lengths: NDArray[np.int64], covered: Coverage, looked_at: int, max_length: int) -> TokenFacts:
    letters = sum(use.letters for use in covered.scripts.values())
    uses = sorted(covered.scripts.items(), key=lambda item: -item[1].letters)
    return TokenFacts(
        median=int(np.median(lengths)),
        p95=int(np.percentile(lengths, 95, method="inverted_cdf")),
        longest=int(lengths.max()),
        cut=int((lengths > max_length).sum()),
        looked_at=looked_at,
        unknown=round(covered.unknown.total() / max(covered.tokens, 1), 4),
        scripts={name: (round(use.letters / letters, 4), round(use.known / use.letters, 4)) for name, use in uses},
    )


def _cut(name: str, reading: Reading, lengths: NDArray[np.int64], by: Tokenization) -> Iterator[Finding]:
    long = np.flatnonzero(lengths > by.max_length)
    if not len(long):
        return
    share = len(long) / len(lengths)
    message = f"{len(long):,} of {len(lengths):,} {name} texts ({percent(len(long), len(lengths))}) are longer than "
    message += f"{by.max_length} tokens and cut; the longest has {int(lengths.max()):,}"
    examples = samples((reading.source, reading.examples[i]) for i in long.tolist())
    severity: Severity = "warning" if share >= SERIOUS_SHARE else "note"
    yield Finding("texts-cut", severity, message, len(long), _cut_fix(lengths, by), examples)


def _cut_fix(lengths: NDArray[np.int64], by: Tokenization) -> str:
    wanted = max(suggested_length(lengths), by.max_length)
    possible = wanted if by.limit is None else min(wanted, by.limit)
    kept = percent(int((lengths <= possible).sum()), len(lengths))
    if possible > by.max_length:
        bound = f", the most this base takes (for {QUANTILE} %: {wanted})" if possible < wanted else ""
        return f"--max-length {possible} leaves {kept} of them whole{bound}"
    if possible < wanted:
        return f"this base takes no more than {by.limit} tokens; put what decides first, or take a base for longer texts"
    return "none needed, unless the last words decide"


def suggested_length(lengths: NDArray[np.int64]) -> int:
    """The least multiple of 8 that `QUANTILE` per cent of `[N]` lengths do not exceed."""
    return int(np.ceil(np.percentile(lengths, QUANTILE, method="inverted_cdf") / 8) * 8)


def _scripts(name: str, reading: Reading, looked_at: Sequence[Example], covered: Coverage) -> Iterator[Finding]:
    for script, use in covered.scripts.items():
        share = len(use.texts) / len(looked_at)
        if len(use.texts) < 2 or share < FOREIGN or use.known >= UNLEARNED * use.letters:
            continue
        foreign, lost = percent(len(use.texts), len(looked_at)), percent(use.letters - use.known, use.letters)
        message = f"{foreign} of the {name} texts are written in {script}, a script this base has not learned: "
        message += f"{lost} of its characters are {_unknown_or_spelled(covered)}"
        other = "bert-base-chinese or xlm-roberta-base" if script == CHINESE else "xlm-roberta-base"
        fix = f"take a base that was trained on it, such as --base {other}; scores with this one say nothing about the method"
        examples = samples((reading.source, looked_at[i]) for i in use.texts)
        yield Finding("unlearned-script", _severity(share), message, _scaled(use, looked_at, reading), fix, examples)


def _severity(share: float) -> Severity:
    return "error" if share >= MANY_FOREIGN else "warning"


def _unknown_or_spelled(covered: Coverage) -> str:
    return "unknown to its vocabulary" if covered.unknown else "spelled one by one, or in bytes"


def _scaled(use: ScriptUse, looked_at: Sequence[Example], reading: Reading) -> int:
    """Texts of the whole split in a script, from those of the sample."""
    return round(len(use.texts) * len(reading.examples) / len(looked_at))


def _unknown(name: str, reading: Reading, looked_at: Sequence[Example], covered: Coverage) -> Iterator[Finding]:
    count = covered.unknown.total()
    if count < 2 or count < UNKNOWN_SHARE * covered.tokens:
        return
    most = ", ".join(f"'{shown(word, 20)}' ({times:,})" for word, times in covered.unknown.most_common(5))
    message = f"{percent(count, covered.tokens)} of the tokens of {len(looked_at):,} {name} texts are unknown to the base: {most}"
    fix = "write these in a way the base knows, if they matter for the labels, or take a base that knows them"
    examples = samples((reading.source, looked_at[i]) for i in covered.unknown_texts)
    yield Finding("unknown-tokens", "warning", message, count, fix, examples)
