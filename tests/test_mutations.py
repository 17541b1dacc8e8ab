"""The list of `scripts/mutations.py` follows the code: what it would break is there, and so is the test that must see it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_line_to_break_stands_once_and_its_test_is_there() -> None:
    spec = importlib.util.spec_from_file_location("mutations", ROOT / "scripts" / "mutations.py")
    assert spec is not None
    assert spec.loader is not None
    mutations = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mutations)
    assert len(mutations.BREAKS) > 50
    for one in mutations.BREAKS:
        source = (ROOT / "src" / "veneer" / one.file).read_text(encoding="utf-8")
        assert source.count(one.text) == 1, f"{one.law}: {one.text!r} in {one.file}"
        file, _, name = one.test.partition("::")
        wanted = f"def {name.partition('[')[0]}(" if name else "def test_"  # a whole file of tests
        assert wanted in (ROOT / "tests" / file).read_text(encoding="utf-8"), one.test
