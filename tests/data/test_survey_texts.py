"""Encoding faults, texts without words, one text over and over."""

from __future__ import annotations

import pytest

from survey_cases import reading, rules
from veneer.data.survey_finding import Finding
from veneer.data.survey_texts import is_wordless, repaired, text_findings

SOUND = """a cold room|see you on monday
l'été à la plage|头痛怎么办？|ЗДРАВСТВУЙТЕ|«CAFÉ—BAR»|„Ära“|🤪|3 × 4|Ç»|wait	…|one
two""".split("|")


def found(texts: list[str], pairs: list[str] | None = None) -> dict[str, Finding]:
    return rules(text_findings("train", reading(texts, pairs=pairs)))


def test_sound_texts_of_many_scripts_give_nothing() -> None:
    assert found(SOUND * 11) == {}


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ("replacement-character", "caf\ufffd"),
        ("replacement-character", "锟斤拷锟斤拷"),
        ("mojibake", "cafÃ© noir"),
        ("mojibake", "itâ€™s fine"),
        ("mojibake", "å¤´ç—›"),
        ("mojibake", "ÐŸÑ€Ð¸Ð²ÐµÑ‚"),
        ("control-character", "one\x00two"),
        ("control-character", "smart \x93quotes\x94"),
        ("control-character", "\ufeffstart"),
        ("no-words", " … !? "),
    ],
)
def test_each_fault_is_found_in_texts_and_in_pairs(rule: str, text: str) -> None:
    rows = [*SOUND * 30, text]
    for findings in (found(rows), found(["sound", *(f"text {i}" for i in range(len(rows) - 1))], [*SOUND * 30, text])):
        assert list(findings) == [rule]
        assert findings[rule].count == 1
        assert [sample.row for sample in findings[rule].examples] == [len(rows)]


def test_a_fault_of_many_rows_is_the_files() -> None:
    few, many = found([*SOUND * 30, "cafÃ©"]), found([*SOUND * 10, *(f"cafÃ© {i}" for i in range(5))])
    assert (few["mojibake"].severity, many["mojibake"].severity) == ("warning", "error")
    assert "'Ã©' was 'é'" in many["mojibake"].message
    assert len(many["mojibake"].examples) == 3


@pytest.mark.parametrize(("broken", "right"), [("cafÃ©", "café"), ("itâ€™s", "it’s"), ("å¤´ç—›", "头痛"), ("ÐŸÑ€Ð¸", "При")])
def test_what_is_broken_can_be_repaired(broken: str, right: str) -> None:
    assert repaired(f"so {broken}!") == f"so {right}!"


def test_examples_are_safe_to_print() -> None:
    (sample,) = found(["[red]\x1b[31m\u202eabc", *SOUND])["control-character"].examples
    assert sample.text == "[red]\\x1b[31m\\u202eabc"


def test_wordless_is_what_has_punctuation_alone() -> None:
    assert is_wordless(":-(")
    assert not any(map(is_wordless, ("7", "好", "a", "👍", "C++")))


def test_one_text_over_and_over() -> None:
    texts = [f"text {i}" for i in range(27)]
    assert found([*texts, "n/a", "n/a"]) == {}
    much = found([*texts, "n/a", "n/a ", " n/a"])["constant-text"]
    assert (much.severity, much.count) == ("warning", 3)
    assert found(["n/a"] * 20)["constant-text"].severity == "error"
    assert found(["n/a"] * 19) == {}
