"""docs/configuration.md says what the configuration says."""

from __future__ import annotations

import runpy
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_page_is_up_to_date() -> None:
    page = runpy.run_path(str(ROOT / "scripts" / "configuration_docs.py"))
    made, kept = page["render"](), (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert made == kept, "docs/configuration.md is stale. Fix: python scripts/configuration_docs.py"
