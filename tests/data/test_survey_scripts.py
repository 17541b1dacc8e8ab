"""What a tokenizer knows of a script's letters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import BertTokenizerFast, PreTrainedTokenizerFast

from veneer.bases import find_base, load_tokenizer
from veneer.data.survey_scripts import coverage, script_of

Base = Callable[..., Path]

CHINESE_TEXTS = ["我头痛怎么办", "今天可以预约吗", "请问报告什么时候出来"]


def tokenizer(tiny_base: Base, family: str = "bert") -> PreTrainedTokenizerFast:
    return load_tokenizer(find_base(str(tiny_base(family))))


SCRIPTS = {
    "Latin": "aＡéª",
    "Chinese characters": "好頭",
    "Japanese kana": "のノ",
    "Korean": "한",
    "Cyrillic": "ж",
    "Arabic": "ع",
    None: "7。 🤪-_",
}


@pytest.mark.parametrize(("letter", "name"), [(letter, name) for name, letters in SCRIPTS.items() for letter in letters])
def test_the_script_of_a_letter(letter: str, name: str | None) -> None:
    assert script_of(letter) == name


def test_words_of_the_vocabulary_are_known(tiny_base: Base) -> None:
    covered = coverage(tokenizer(tiny_base), ["a good doctor", "I can wait until friday"[:10]])
    assert covered.unknown.total() == 0
    assert list(covered.scripts) == ["Latin"]
    assert (covered.scripts["Latin"].letters, covered.scripts["Latin"].known) == (19, 19)
    assert covered.scripts["Latin"].texts == [0, 1]


def test_letters_spelled_one_by_one_are_not(tiny_base: Base) -> None:
    covered = coverage(tokenizer(tiny_base), ["zyxq good"])
    assert (covered.scripts["Latin"].letters, covered.scripts["Latin"].known) == (8, 4)


def test_chinese_characters_are_known_one_by_one_or_are_unknown(tiny_base: Base) -> None:
    covered = coverage(tokenizer(tiny_base), ["我头痛", "血压高"])
    assert covered.unknown == {"血": 1, "压": 1, "高": 1}
    assert (covered.scripts["Chinese characters"].letters, covered.scripts["Chinese characters"].known) == (6, 3)


def test_characters_in_bytes_are_not_known(tiny_base: Base) -> None:
    covered = coverage(tokenizer(tiny_base, "gpt2"), ["血压高"])
    assert covered.unknown.total() == 0
    assert covered.scripts["Chinese characters"].known == 0


def test_a_real_chinese_vocabulary_knows_chinese_and_not_russian(shared_data: Callable[[str], Path]) -> None:
    lines = shared_data("bert_base_chinese_vocab/vocab.txt").read_text(encoding="utf-8").splitlines()
    chinese = BertTokenizerFast(vocab={word: i for i, word in enumerate(lines)})
    covered = coverage(chinese, [*CHINESE_TEXTS, "Спасибо за помощь"])
    assert covered.scripts["Chinese characters"].known == covered.scripts["Chinese characters"].letters
    assert covered.scripts["Cyrillic"].known < 0.2 * covered.scripts["Cyrillic"].letters
