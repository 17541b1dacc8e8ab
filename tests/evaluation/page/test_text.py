"""Characters that mislead are made visible, all others left alone."""

from __future__ import annotations

import pytest

from veneer.evaluation.page.text import cut, visible


@pytest.mark.parametrize("text", ["plain", "two\nlines\tand a tab", "هذا رائع", "👩‍👩‍👧", "naïve ½ ⟨U+0000⟩", ""])
def test_what_everybody_writes_is_left_alone(text):
    assert visible(text) == text


@pytest.mark.parametrize("code", [0, 8, 0x0B, 0x1B, 0x7F, 0x85, 0x2028, 0x202A, 0x202E, 0x2066, 0x2069, 0xD800, 0xDFFF, 0xFFFE])
def test_what_misleads_is_made_visible(code):
    shown = visible(f"a{chr(code)}b")
    assert shown == f"a⟨U+{code:04X}⟩b"
    shown.encode("utf-8")


def test_a_long_text_is_cut_and_says_how_long_it_was():
    assert cut("abcdef", 6) == "abcdef"
    assert cut("x" * 1500, 4) == "xxxx … (1,500 characters)"
