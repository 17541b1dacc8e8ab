"""scripts/screenshots.py, where there is a browser to take them with."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from page_samples import multi_label
from veneer.evaluation.page import render_page

SCRIPT = runpy.run_path(str(Path(__file__).parent.parent / "scripts" / "screenshots.py"))
BROWSER = SCRIPT["find_browser"]()

needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on the PATH")


@needs_browser
@pytest.mark.slow
def test_pictures_of_the_page_whose_words_are_as_wide_as_they_come(tmp_path):
    report = multi_label(3)
    report["diagnosis"]["mistakes"][0] |= {"text": "w" * 600, "given": ["label_" * 40]}
    report["labels"] = ["label_" * 40, *report["labels"][1:]]
    for name in ("dev", "test"):
        report["evaluations"][name]["per_class"][0]["label"] = "label_" * 40
    report["verdict"]["text"] = "v" * 500
    page = tmp_path / "report.html"
    page.write_text(render_page(report), encoding="utf-8")
    written = SCRIPT["take_pictures"](BROWSER, page, tmp_path / "out")
    assert [path.name for path in written] == [
        "phone-light.png",
        "phone-dark.png",
        "desk-light.png",
        "desk-dark.png",
        "print.pdf",
    ]
    assert all(path.read_bytes()[:4] in (b"\x89PNG", b"%PDF") for path in written)
    assert (tmp_path / "out" / "phone-light.png").read_bytes() != (tmp_path / "out" / "phone-dark.png").read_bytes()


@needs_browser
def test_a_page_that_is_wider_than_a_phone_is_seen(tmp_path):
    page = tmp_path / "wide.html"
    page.write_text("<!doctype html><body style='margin:0'><div style='width:900px'>wide</div>", encoding="utf-8")
    with pytest.raises(RuntimeError, match="900 pixels wide in a window of 390"):
        SCRIPT["take_pictures"](BROWSER, page, tmp_path / "out")
