"""The page: whole, self-contained, and safe whatever a text or a label says."""

from __future__ import annotations

import copy
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from page_samples import made, many_labels, minimal, multi_label, of_one_text, single_label, verdict
from veneer.errors import ArtifactError
from veneer.evaluation.page import render_page

REPORTS = {
    "single": single_label(),
    "twenty": single_label(20),
    "matrix too large": single_label(30),
    "multi": multi_label(),
    "many": multi_label(28),
    "minimal": minimal(),
    "one text": of_one_text(),
    "shrunk": made("shrink"),
    "combined": made("combine"),
    "ensemble": made("ensemble"),
    "made and not scored": made("combine", "runs/b was trained on 3 of the texts"),
    "10,000 classes": many_labels(False),
    "10,000 labels": many_labels(True),
}
VOID = {"meta", "link", "br", "wbr", "hr", "img", "input", "base"}
HOSTILE = [
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "' onmouseover='alert(1)",
    "{{ 7 * 7 }}{% raw %}",
    "]]><!-- </style></svg></title>",
    "evil \u202e txt.exe",
    "null \x00 byte",
    "half \ud800 pair",
    "w" * 3000,
    "",
    "[link](javascript:alert(1))",
]


class Document(HTMLParser):
    """The elements of a page, checked to be nested rightly; its text, and every attribute."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def shown(report: dict[str, Any]) -> str:
    return Document(render_page(report)).text


@pytest.mark.parametrize("name", REPORTS)
def test_every_page_is_nested_rightly_small_and_needs_nothing_else(name):
    page = render_page(REPORTS[name])
    document = Document(page)
    assert len(page.encode("utf-8")) < 2_000_000
    assert {"script", "link", "iframe", "object", "img", "form", "base"}.isdisjoint(document.tags)
    assert not [value for key, value in document.attributes if key in ("src", "srcset", "action", "data", "xlink:href")]
    assert all(value.startswith("#") for key, value in document.attributes if key == "href")
    assert "@import" not in page
    assert "url(" not in page
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:;" in page
    assert not re.search(r"\bnan\b|\binf\b|\bNone\b|Undefined", document.text)


@pytest.mark.parametrize("name", REPORTS)
def test_every_link_leads_to_a_place_on_the_page(name):
    document = Document(render_page(REPORTS[name]))
    places = {value for key, value in document.attributes if key == "id"}
    assert {value[1:] for key, value in document.attributes if key == "href"} <= places


def test_a_page_is_a_function_of_the_report_and_does_not_touch_it():
    report = single_label()
    kept = copy.deepcopy(report)
    assert render_page(report) == render_page(report)
    assert report == kept


def test_warnings_of_the_data_are_on_the_page_and_are_no_markup():
    warning = {"source": "a.csv", "row": 1200, "column": "text", "value": "<b>x</b>", "message": "the text is odd", "fix": "see"}
    text = shown(minimal() | {"warnings": [warning | {"count": 3}]})
    for said in ("the text is odd", ", in 3 rows", "<b>x</b>", "a.csv", ", row 1,200, column text", "What to do: see"):
        assert said in text
    assert "Warnings of the data" not in shown(minimal())


def test_the_parts_come_in_order():
    page = render_page(single_label())
    parts = "verdict next scores confusion calibration curves mistakes slices learning run".split()
    assert re.findall(r'<section[^>]* id="(\w+)"', page) == parts
    text = shown(single_label())
    titles = "Effective|What to change next|Scores|Confusion|Most confused|Reliability|Decision rule|Precision, recall|Margins"
    titles += "|Most confident mistakes|Slices|Learning curves|Parameters|Configuration|Data fingerprints|Versions"
    place = text.rindex("The run", 0, text.index("Effective"))  # the last of the links
    for title in titles.split("|"):
        place = text.index(title, place)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("effective", "Effective"),
        ("limited", "Limited gain"),
        ("not_worth_it", "Not worth it"),
        ("within_noise", "Within the noise"),
    ],
)
def test_a_verdict_has_a_word_a_sign_and_its_numbers(kind, words):
    one = verdict(kind)
    page = render_page(minimal() | {"verdict": one})
    assert re.search(rf'<section class="verdict {kind}".*?<h2><svg class="icon".*?</svg>{words}</h2>', page, re.DOTALL)
    assert Document(page).text.count(one["text"]) == 1
    without = Document(render_page(minimal() | {"verdict": one | {"text": ""}})).text
    assert f"{one['score']:.3f}" in without


@pytest.mark.parametrize(
    ("kind", "opening"),
    [
        ("effective", "Effective"),
        ("limited", "A limited gain"),
        ("not_worth_it", "Not worth it"),
        ("within_noise", "Within the noise"),
    ],
)
def test_the_text_does_not_begin_with_what_its_heading_says(kind, opening):
    one = verdict(kind) | {"text": f"{opening}: this run's accuracy is 0.9."}
    box = part(minimal() | {"verdict": one}, "verdict")
    assert "This run's accuracy is 0.9." in box
    assert f"{opening}:" not in box


def test_the_signs_of_the_verdicts_differ_in_shape():
    kinds = ("effective", "limited", "not_worth_it", "within_noise")
    pages = [render_page(minimal() | {"verdict": verdict(kind)}) for kind in kinds]
    signs = {re.search(r'<svg class="icon"[^>]*>(.*?)</svg>', page, re.DOTALL)[1] for page in pages}  # type: ignore[index]
    assert len(signs) == 4


def test_what_is_missing_says_which_command_fills_it():
    text = shown(minimal())
    for said in ("Not scored", "veneer compare DIR --baselines", "veneer calibrate DIR", "no diagnosis", "veneer train"):
        assert said in text
    assert "Learning curves" not in text


def test_what_a_run_was_made_from_comes_first() -> None:
    page = render_page(made())
    assert page.index('id="made"') < page.index('id="verdict"')
    box = part(made(), "made").replace("/ ", "/")  # a line may break there
    for said in (
        "Made from 2 runs",
        "weighted sum",
        "veneer combine",
        "runs/a",
        "0.7",
        "0.810",
        "0.750 – 0.860",
        "1,234,567",
        "654,321",
    ):
        assert said in box
    assert "itself made by veneer shrink from runs/b-large" in box
    assert "Configuration of the first run it was made from" in part(made(), "run")
    assert 'id="made"' not in render_page(single_label())


def test_a_smaller_run_says_what_was_asked_for_and_has_its_ranks() -> None:
    box = part(made("shrink"), "made")
    for said in ("Made from another run", "smaller ranks", "least score asked for 0.75", "calibration fitted again on dev"):
        assert said in box
    assert "encoder.layer.0.query 8 5 " in box
    assert "encoder.layer.2.query 8 –" in box
    assert "weight" not in box
    assert "Ranks" not in part(made("ensemble"), "made")


def test_why_a_made_run_has_no_scores_is_said_and_what_to_do() -> None:
    report = made("combine", "runs/b was trained on 3 of the texts")
    assert "neither scores nor a calibration from the making: runs/b was trained on 3 of the texts" in part(report, "made")
    assert "veneer evaluate DIR --data FILE" in part(report, "verdict")
    assert "compare" not in part(report, "verdict")
    assert "veneer calibrate DIR --data FILE" in part(report, "calibration")


@pytest.mark.parametrize("before", ["", "F1 0.5 after 9 steps; "])
def test_how_the_training_went_is_said_once(before):
    report = single_label()
    report["diagnosis"]["fit"] = {"state": "over", "evidence": "the loss on dev rose"}
    assert "Training: The loss on dev rose." in shown(report)
    report["diagnosis"]["suggestions"] = [
        {"rule": "overfitting", "advice": "Hold back.", "evidence": f"{before}the loss on dev rose", "gain": 0.1}
    ]
    assert shown(report).lower().count("the loss on dev rose") == 1
    assert "Training:" not in shown(report)


def test_without_a_verdict_the_score_comes_first():
    report = single_label() | {"verdict": None}
    value = report["evaluations"]["test"]["metrics"]["macro_f1"]
    assert f"<h2>macro F1 {value:.3f}</h2>" in render_page(report)


def test_a_calibration_stored_since_is_said_where_it_matters():
    """In the verdict's own box, beside the advice and below the scores."""
    report = single_label() | {"calibrated_since": True}
    box, advice, scores = (part(report, name) for name in ("verdict", "next", "scores"))
    assert "This verdict is of the calibration at the end of training" in box
    assert "veneer evaluate scores as the run decides now" in box
    assert "by the calibration of then" in advice
    assert "on dev. Scores are by an earlier calibration than the one shown below" in scores
    scores = part(report | {"dev_rescored": True}, "scores")
    assert "on dev. Scores on dev are by the calibration shown below" in scores
    assert "those on other splits are by an earlier one" in scores
    alone = report | {"verdict": None}
    assert "This score is by an earlier calibration" in part(alone, "verdict")
    assert "by a calibration that was removed since" in part(report | {"calibration": None}, "scores")
    alone |= {"dev_rescored": True, "evaluations": {"dev": report["evaluations"]["dev"]}}
    assert "earlier" not in part(alone, "verdict") + part(alone, "scores")
    assert "calibration" not in part(single_label(), "verdict") + part(single_label(), "next")


def test_a_removed_calibration_is_said_where_dev_was_scored_again():
    report = single_label() | {"calibrated_since": True, "dev_rescored": True, "calibration": None}
    assert "Scores on dev are by the plain rule, as the calibration was removed since" in part(report, "scores")


def test_long_names_of_labels_go_on_after_an_underline_and_are_no_markup():
    report = multi_label(3)
    report["evaluations"]["test"]["per_class"][0]["label"] = "change_<b>appointment"
    assert "change_<wbr>" not in render_page(report)
    report["evaluations"]["test"]["per_class"][1]["label"] = "book_<i>_it"
    assert "<bdi>book_&lt;i&gt;_<wbr>it</bdi>" in render_page(report)


def part(report: dict[str, Any], name: str) -> str:
    """The text of a section of the page."""
    found = re.search(rf'<section[^>]* id="{name}">.*?</section>', render_page(report), re.DOTALL)
    assert found
    return Document(found[0]).text


def test_scores_have_their_intervals():
    report = single_label()
    low, high = report["evaluations"]["dev"]["intervals"]["macro_f1"]
    assert f"{low:.3f} – {high:.3f}" in shown(report)


def test_a_matrix_a_table_of_labels_or_the_pairs():
    assert "true ↓ decided →" in shown(single_label())
    assert "wrongly given (FP)" in shown(multi_label())
    large = single_label(30)
    large["diagnosis"]["confused"] = []
    text = shown(large)
    assert "only the pairs that are confused most" in text
    assert "true ↓ decided →" not in text
    assert re.search(r"class \d+ taken for class \d+ : \d+ text", text)


def test_labels_own_calibration_errors_are_shown_where_there_are_any() -> None:
    assert "mean of each label’s own ECE 0.0937 0.0254" in " ".join(shown(multi_label()).split())
    assert "own ECE" not in shown(single_label())


def test_a_column_of_the_matrix_is_headed_by_its_label_where_it_is_short():
    report = single_label(2)
    report["evaluations"]["test"]["confusion"]["labels"] = ["0", "1"]
    assert "true ↓ decided → 0 1 0 " in shown(report)
    assert "true ↓ decided → 1 2 1 negative " in shown(single_label(2))


def rows(report: dict[str, Any], label: str) -> list[list[str]]:
    """The rows of all tables that begin with `label`, as their cells' text."""
    found = re.findall(r"<tr[^>]*>(.*?)</tr>", render_page(report), re.DOTALL)
    cells = [[Document(cell).text for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)] for row in found]
    return [row[1:] for row in cells if row[0] == label]


def test_every_number_stands_in_its_column():
    report = multi_label(2)
    report["evaluations"]["test"]["confusion"]["matrix"] = [[[1234, 5], [6, 7]], [[1, 1], [1, 1]]]
    report["evaluations"]["test"]["per_class"][0] |= {"f1": 0.1, "precision": 0.2, "recall": 0.3, "support": 4, "predicted": 1500}
    report["diagnosis"]["limits"][0] |= {"f1": 0.4, "best_f1": 0.5, "threshold": 0.6, "auc": 0.7, "support": 8}
    report["diagnosis"]["slices"] = [{"by": "label", "value": "amusement", "texts": 9, "score": 0.9, "interval": [0.8, 0.95]}]
    assert rows(report, "amusement") == [
        ["0.100", "", "0.200", "0.300", "4", "1,500"],
        ["7", "5", "6", "1,234"],  # TP, FP, FN, TN
        ["0.310", "1.250", "0.100", "–"],  # threshold, temperature, shift, offset
        ["0.400", "0.500", "0.600", "0.700", "8"],
        ["0.900 0.800 – 0.950", "", "9"],
    ]
    assert rows(report, "Brier score") == [["0.1420", "0.1310"]]
    assert rows(report, "lora") == [["331,776", "1.4 %"]]
    assert rows(report, "lora.rank") == [["8"]]
    assert rows(report, "dev") == [["sha256:" + "4e5f6071" * 8]]
    assert rows(report, "torch") == [["2.13.0+cpu"]]


def test_the_calibration_says_what_was_fitted_and_which_rule_is_kept():
    text = shown(single_label())
    assert "temperature 1.818" in text  # of a slope of 0.55
    assert (
        "Decision rule: the plain one is kept macro F1: plain 0.901, fitted 0.903; gain +0.002 (95 %: −0.003 to +0.006)." in text
    )
    assert "The gain's interval includes zero." in text
    fitted = single_label()
    fitted["calibration"]["rule"]["kept"] = "fitted"
    assert "the fitted one is kept" in shown(fitted)


def test_a_mistake_says_how_sure_it_was_and_of_what():
    report = minimal() | {
        "diagnosis": {"mistakes": [{"row": 7, "text": "hm", "given": [], "decided": ["a"], "confidence": 0.993}]}
    }
    assert "99.3 % sure of a ; labelled none row 7 hm" in shown(report)


def test_charts_of_many_labels_are_folded_away():
    page = render_page(multi_label(28))
    assert "24 more labels" in page
    assert page.index("24 more labels") > page.index("Precision, recall and thresholds")


def test_too_many_labels_are_counted():
    assert "9,900 more classes are in report.json" in shown(many_labels(True))


def hostile_report(text: str, multi: bool) -> dict[str, Any]:
    """A report in which every string that comes from people is `text`."""
    report = multi_label(4) if multi else single_label(4)

    def infect(tree: Any) -> Any:
        if isinstance(tree, dict):
            return {key: value if key in ("kind", "task", "state", "kept") else infect(value) for key, value in tree.items()}
        if isinstance(tree, list):
            return [infect(value) for value in tree]
        return text if isinstance(tree, str) else tree

    infected: dict[str, Any] = infect(report)
    for key in ("splits", "evaluations", "versions", "parameters"):
        infected[key][text] = next(iter(infected[key].values()))
    infected["configuration"][text] = {text: [text]}
    infected["data"]["fingerprints"][text] = text
    for row in infected["history"]:
        row["split"] = "dev"
    return infected


@pytest.mark.parametrize("multi", [False, True])
@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_text_is_shown_and_not_run(text, multi):
    clean = render_page(multi_label(4) if multi else single_label(4))
    page = render_page(hostile_report(text, multi))
    document = Document(page)
    assert set(document.tags) - {"wbr"} == set(Document(clean).tags) - {"wbr"}  # after an underline of a label
    assert {name for name, _ in document.attributes} == {name for name, _ in Document(clean).attributes}
    page.encode("utf-8")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", page)
    if text.startswith(("<script", '"', "'", "{{", "]]")):
        assert text in "".join(document.texts)  # in full, as it was written


def test_what_would_mislead_is_named():
    assert "evil ⟨U+202E⟩ txt.exe" in shown(hostile_report(HOSTILE[5], False))
    assert "null ⟨U+0000⟩ byte" in shown(hostile_report(HOSTILE[6], True))


def test_a_very_long_text_is_cut():
    assert "w … (3,000 characters)" in shown(hostile_report("w" * 3000, False))


def test_a_damaged_report_is_refused():
    with pytest.raises(ArtifactError, match="verdict"):
        render_page(minimal() | {"verdict": "splendid"})
