"""Lengths, cuts, unknown tokens and scripts a base has not learned."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from survey_cases import reading, rules
from veneer.bases import find_base, load_tokenizer
from veneer.data.survey_finding import Finding
from veneer.data.survey_tokens import TokenFacts, Tokenization, suggested_length, survey_tokens

Base = Callable[..., Path]
Survey = Callable[..., tuple[TokenFacts, dict[str, Finding]]]
ENGLISH = ["the doctor was good", "please call again on monday", "how much will it cost"]


@pytest.fixture
def survey(tiny_base: Base) -> Survey:
    def run(
        texts: list[str], *, max_length: int = 16, limit: int | None = 160, **others: list[str]
    ) -> tuple[TokenFacts, dict[str, Finding]]:
        by = Tokenization(load_tokenizer(find_base(str(tiny_base()))), max_length, limit)
        facts, findings = survey_tokens("train", reading(texts, **others), by)
        return facts, rules(findings)

    return run


def test_texts_a_base_knows_give_nothing(survey: Survey) -> None:
    facts, findings = survey(ENGLISH)
    assert findings == {}
    assert (facts.median, facts.p95, facts.longest, facts.cut, facts.unknown) == (7, 7, 7, 0, 0.0)
    assert facts.scripts == {"Latin": (1.0, 1.0)}
    assert facts.to_json()["scripts"] == {"Latin": {"letters": 1.0, "known": 1.0}}


def test_pairs_are_measured_together(survey: Survey) -> None:
    assert survey(["the film"], pairs=["a good one"])[0].longest == 8


def test_cut_texts_come_with_a_length_that_would_do(survey: Survey) -> None:
    texts = ["good " * 3] * 95 + ["good " * 30] * 5
    facts, findings = survey(texts)
    cut = findings["texts-cut"]
    assert (facts.cut, cut.count, cut.severity) == (5, 5, "warning")
    assert "the longest has 32" in cut.message
    assert cut.fix.startswith("--max-length 32 leaves 100 %")
    assert [sample.row for sample in cut.examples] == [96, 97, 98]


def test_a_suggestion_is_no_more_than_the_base_takes(survey: Survey) -> None:
    texts = ["good " * 3] * 95 + ["good " * 30] * 5
    assert survey(texts, limit=24)[1]["texts-cut"].fix.startswith("--max-length 24 leaves 95 % of them whole, the most")
    assert "no more than 16 tokens" in survey(texts, limit=16)[1]["texts-cut"].fix
    assert survey(texts, limit=None)[1]["texts-cut"].fix.startswith("--max-length 32")


def test_one_long_text_among_many_needs_nothing(survey: Survey) -> None:
    cut = survey(["good " * 3] * 300 + ["good " * 30])[1]["texts-cut"]
    assert (cut.severity, cut.fix.startswith("none needed")) == ("note", True)


def test_a_suggested_length_covers_99_of_100() -> None:
    assert suggested_length(np.array([10] * 99 + [500])) == 16
    assert suggested_length(np.array([10] * 97 + [33] * 2 + [500])) == 40


def test_a_script_the_base_has_not_learned_is_an_error(survey: Survey) -> None:
    facts, findings = survey(["血压高怎么办", "糖尿病吃什么", "心肌缺血如何治疗"])
    assert findings.keys() == {"unlearned-script"}
    finding = findings["unlearned-script"]
    assert (finding.severity, finding.count) == ("error", 3)
    assert "100 % of the train texts are written in Chinese characters" in finding.message
    assert "bert-base-chinese" in finding.fix
    assert facts.unknown > 0.5


def test_a_few_texts_of_it_are_a_warning_and_a_stray_one_is_not(survey: Survey) -> None:
    assert survey(ENGLISH * 20 + ["血压高怎么办", "糖尿病吃什么"])[1]["unlearned-script"].severity == "warning"
    assert survey(ENGLISH * 20 + ["血压"])[1].keys() <= {"unknown-tokens"}


def test_an_alphabet_that_is_spelled_is_not_learned_either(survey: Survey) -> None:
    finding = survey(["zyxq vwxz qqkj", "xzqj kkvw"])[1]["unlearned-script"]
    assert "spelled one by one" in finding.message


def test_unknown_tokens_are_named(survey: Survey) -> None:
    unknown = survey([*ENGLISH, "good 🤪", "bad 🤪 ☃"])[1]["unknown-tokens"]
    assert unknown.count == 3
    assert unknown.message.endswith("'🤪' (2), '☃' (1)")
    assert [sample.text for sample in unknown.examples] == ["good 🤪", "bad 🤪 ☃"]
    assert "unknown-tokens" not in survey([*ENGLISH * 40, "good 🤪", "bad 🤪"])[1]
