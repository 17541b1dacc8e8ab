"""Leaving the base's few bits: what changes is counted, scored, and held to a budget."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from toy_runs import run, toy_config
from veneer.errors import VerificationError
from veneer.export.merged import PROBES, merge_run
from veneer.export.rebased import JudgedTexts, measure_change
from veneer.predictor import load

Base = Callable[..., Path]


@pytest.fixture(scope="module", params=["nf4", "int8"])
def folder(request: pytest.FixtureRequest, tiny_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "nf4":
        pytest.importorskip("bitsandbytes", reason="NF4 comes with the extra 'qlora'")
    place = tmp_path_factory.mktemp("run")
    return run(toy_config(place, tiny_base("qwen2"), base_precision=request.param, training__epochs=1)).folder


def decisions(folder: Path, texts: list[str], *, full: bool) -> list[str]:
    """As the run decides where it is predicted with, or over the float32 base."""
    predictor = load(folder, precision="fp32", base_precision="auto") if full else load(folder)
    return [one.labels[0] for one in predictor.predict(texts)]


def test_it_counts_and_scores_what_is_decided_otherwise(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [
        f"{first} {second}" for first in "good bad great why film x 你 love".split() for second in "a it poor dull ! 9".split()
    ]
    few, full = decisions(folder, words, full=False), decisions(folder, words, full=True)
    flips = sum(one != other for one, other in zip(few, full, strict=True))
    assert measure_change(folder, JudgedTexts("dev", words, None)).flips == flips
    alike = [text for text, one, other in zip(words, few, full, strict=True) if one == other]
    names = load(folder).info.labels
    ids = [[names.index(label)] for label in decisions(folder, alike, full=False)]
    change = measure_change(folder, JudgedTexts("dev", alike, None, ids))
    assert (change.texts, change.flips, change.share) == (len(alike), 0, 0.0)
    assert change.scores is not None
    assert change.scores[0] == change.scores[1]
    wrong = [[1 - one] for (one,) in ids]
    assert measure_change(folder, JudgedTexts("dev", alike, None, wrong)).scores == (0.0, 0.0)

    def turned(*arguments: object, **options: object) -> object:
        predictor, logits = load(*arguments, **options), load(*arguments, **options).logits  # type: ignore[arg-type]
        sign = -1.0 if options.get("base_precision") == "auto" else 1.0
        monkeypatch.setattr(predictor, "logits", lambda *given: sign * logits(*given))
        return predictor

    monkeypatch.setattr("veneer.export.rebased.load", turned)
    change = measure_change(folder, JudgedTexts("dev", alike, None, ids))
    assert (change.flips, change.share) == (len(alike), 1.0)
    assert change.scores is not None
    assert change.scores[1] == 0.0
    assert f"{len(alike)} of {len(alike)} dev texts (100.0%) are decided otherwise" in change.describe()
    assert "no labels" in measure_change(folder, JudgedTexts("probe", alike, None)).describe()


def test_beyond_the_budget_nothing_is_written_unless_forced(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = measure_change

    def worse(*arguments: object, **options: object) -> object:
        found = real(*arguments, **options)  # type: ignore[arg-type]
        return type(found)(found.base_precision, found.source, found.texts, 3, (0.9, 0.5))

    monkeypatch.setattr("veneer.export.merged.measure_change", worse)
    message = r"3 of 10 probe texts \(30\.0%\) .*0\.9000 -> 0\.5000 \(-0\.4000\).*more than --budget 0\.29.*Fix: .*--force"
    with pytest.raises(VerificationError, match=message):
        merge_run(folder, tmp_path / "merged", budget=0.29)
    assert list(tmp_path.iterdir()) == []
    assert merge_run(folder, tmp_path / "within", budget=0.3).change is not None
    assert merge_run(folder, tmp_path / "forced", budget=0.0, force=True).change is not None


def test_the_checkpoint_is_the_float32_base_and_the_adapter(folder: Path, tmp_path: Path) -> None:
    report = merge_run(folder, tmp_path / "merged", force=True)
    assert report.difference < 1e-4
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    texts = [text for text in PROBES if len(text) < 60]
    with torch.no_grad():
        merged = torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text in texts])
    full = load(folder, precision="fp32", base_precision="auto").logits(texts)
    torch.testing.assert_close(merged, full, atol=1e-4, rtol=1e-4)
    assert (load(folder, precision="fp32").logits(texts) - full).abs().max() > 1e-3  # what the change is measured for
