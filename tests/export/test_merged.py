"""A merged checkpoint gives the run's logits through transformers alone."""

from __future__ import annotations

import ast
import json
import re
import runpy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from causal_bases import bilingual_base, toy_pairs
from toy_runs import run, toy_config, toy_rows, write_csv
from veneer import lora
from veneer.bases import find_base, pooling_of
from veneer.errors import InputError, VerificationError
from veneer.export.merged import _decision, merge_run
from veneer.predictor import load
from veneer.run_info import read_info, update_info
from veneer.tasks import Calibration, Promise

Base = Callable[..., Path]
TEXTS = ["a great film", "why, oh why?", "bad " * 200]


def make_run(folder: Path, base: Path, **changes: Any) -> Path:
    folder.mkdir()
    return run(toy_config(folder, base, training__epochs=1, training__precision="bf16", data__max_length=24, **changes)).folder


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "modernbert", "electra", "qwen2", "llama", "gpt2"])
def test_a_family_head_is_one_model_of_transformers(tiny_base: Base, tmp_path: Path, family: str) -> None:
    folder = make_run(tmp_path / "run", tiny_base(family))
    report = merge_run(folder, tmp_path / "merged")
    assert report.loaded_by == "AutoModelForSequenceClassification"
    assert (report.texts, report.flips) == (10, 0)
    assert report.difference < 1e-4
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    expected = load(folder, precision="fp32").logits(TEXTS)
    with torch.no_grad():
        rows = [model(**tokenizer(text, truncation=True, return_tensors="pt")).logits for text in TEXTS]
    torch.testing.assert_close(torch.cat(rows), expected, atol=1e-4, rtol=1e-4)
    assert (model.config.id2label, model.config.label2id) == ({0: "bad", 1: "good"}, {"bad": 0, "good": 1})
    assert model.config.problem_type == "single_label_classification"
    assert not any("lora" in name for name in model.state_dict())
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(("base", "pooling"), [("bert", "mean"), ("electra", "mean"), ("qwen2", "mean"), ("bert", "last")])
def test_our_head_lies_beside_an_encoder_that_says_how_it_pools(tiny_base: Base, tmp_path: Path, base: str, pooling: str) -> None:
    report = merge_run(make_run(tmp_path / "run", tiny_base(base), pooling=pooling), tmp_path / "merged")
    assert report.loaded_by is None
    assert report.difference < 1e-4
    assert pooling_of(find_base(str(tmp_path / "merged"))) == pooling


@pytest.mark.parametrize("kind", ["family head", "our head", "pairs", "multi-label"])
def test_the_readme_says_how_to_use_it(
    tiny_base: Base, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changes: dict[str, Any] = {}
    (tmp_path / "run").mkdir()
    if kind == "pairs":
        for name, count in (("train", 42), ("dev", 12)):
            write_csv(tmp_path / "run" / f"{name}.csv", [row | {"second": row["text"]} for row in toy_rows(count)])
        changes = {"data__pair": "second"}
    elif kind == "multi-label":
        write_csv(tmp_path / "run" / "train.csv", toy_rows(30, labels=("good", "bad", "odd"), multi=True))
        write_csv(tmp_path / "run" / "dev.csv", toy_rows(9, labels=("good", "bad", "odd"), multi=True, seed=1))
        changes = {"data__label_separator": "|", "pooling": "mean"}
    elif kind == "our head":
        changes = {"pooling": "mean"}
    folder = run(toy_config(tmp_path / "run", tiny_base(), training__epochs=1, **changes)).folder
    merge_run(folder, tmp_path / "merged")
    readme = (tmp_path / "merged" / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    (tmp_path / "code.py").write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path / "merged")
    runpy.run_path(str(tmp_path / "code.py"))
    out, said = capsys.readouterr()
    assert "LOAD REPORT" not in said  # such as of a pooler that the encoder has no use for
    printed = ast.literal_eval(out)
    (expected,) = load(folder, precision="fp32").predict(["a text"], ["its second text"] if kind == "pairs" else None)
    assert printed == pytest.approx(expected.scores, abs=1e-4)


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
@pytest.mark.parametrize("several", [False, True])
def test_label_words_are_a_language_model_with_their_tokens_beside_it(
    tmp_path: Path, chat: bool, family: str, several: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    for name, count in (("train", 24), ("dev", 9)):
        write_csv(tmp_path / "run" / f"{name}.csv", toy_pairs(count))
    words = {"different": "不相似", "same": "好相似"} if several else {"different": "否", "same": "是"}
    changes = {
        "data__pair": "pair",
        "verbaliser__template": "chat" if chat else "{text} or {pair}\n",
        "verbaliser__words": words,
        "verbaliser__length_normalised": several,
    }
    folder = run(toy_config(tmp_path / "run", bilingual_base(tmp_path / "base", family), training__epochs=1, **changes)).folder
    update_info(folder, replace(read_info(folder), calibration=Calibration(slopes=(0.5,), offsets=(0.0, 1.0)).to_json()))
    report = merge_run(folder, tmp_path / "merged")
    assert (report.loaded_by, report.flips) == ("AutoModelForCausalLM", 0)
    assert report.difference < 1e-4
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert not any("lora" in name for name in model.state_dict())
    stored = json.loads((tmp_path / "merged" / "label_words.json").read_text(encoding="utf-8"))
    assert (stored["labels"], stored["words"]) == (["different", "same"], list(words.values()))
    assert bool(stored["lead"]) is not chat  # the chat template holds it
    readme = (tmp_path / "merged" / "README.md").read_text(encoding="utf-8")
    assert "a whole prompt had at most 128 tokens" in readme
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    (tmp_path / "code.py").write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path / "merged")
    runpy.run_path(str(tmp_path / "code.py"))
    out, said = capsys.readouterr()
    assert "LOAD REPORT" not in said
    (expected,) = load(folder, precision="fp32").predict(["a text"], ["its second text"])
    assert ast.literal_eval(out) == pytest.approx(expected.scores, abs=1e-4)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_the_readme_follows_the_calibration(
    tiny_base: Base, tmp_path: Path, pooling: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    for name, count in (("train", 30), ("dev", 9)):
        write_csv(tmp_path / "run" / f"{name}.csv", toy_rows(count, labels=("good", "bad", "odd"), multi=True))
    changes: dict[str, Any] = {"data__label_separator": "|", "pooling": pooling}
    folder = run(toy_config(tmp_path / "run", tiny_base(), training__epochs=1, **changes)).folder
    promise = Promise(0.95, 0.125, 100)
    calibration = Calibration(
        slopes=(0.5, 1.0, 2.0), shifts=(1.0, 0.0, -1.0), thresholds=(0.2, 0.3, 0.4), coverage=promise, precision=promise
    )
    update_info(folder, replace(read_info(folder), calibration=calibration.to_json()))
    merge_run(folder, tmp_path / "merged")
    readme = (tmp_path / "merged" / "README.md").read_text(encoding="utf-8")
    assert "`thresholds`" in readme
    assert "0.125 and more hold every right one for 95.0% of texts" in readme
    assert "below 0.125, abstain" in readme
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    (tmp_path / "code.py").write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path / "merged")
    runpy.run_path(str(tmp_path / "code.py"))
    (expected,) = load(folder, precision="fp32").predict(["a text"])
    assert ast.literal_eval(capsys.readouterr().out) == pytest.approx(expected.scores, abs=1e-4)
    stored = json.loads((tmp_path / "merged" / "calibration.json").read_text(encoding="utf-8"))
    assert stored == {"labels": ["bad", "good", "odd"], **calibration.to_json()}


def test_a_checkpoint_with_other_logits_is_not_left_behind(
    tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_run(tmp_path / "run", tiny_base(), training__learning_rate=5e-2)
    plain = lora.remove_lora
    monkeypatch.setattr(lora, "remove_lora", lambda model, **_: plain(model))  # the base's weights, without the update
    with pytest.raises(VerificationError, match="was not written"):
        merge_run(folder, tmp_path / "merged")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_a_place_that_cannot_be_written(tiny_base: Base, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", tiny_base())
    with pytest.raises(InputError, match=r"cannot write .*config\.yaml/merged: Not a directory\. Fix: another --out"):
        merge_run(folder, folder / "config.yaml" / "merged")


def test_an_existing_folder_is_never_touched(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="exists"):
        merge_run(tmp_path / "nothing", tmp_path)


def test_the_page_of_a_checkpoint_tells_which_classes_offsets_leave_alone() -> None:
    offsets = (0.0, 1.0, 0.0)
    assert "not `left`" in _decision(Calibration(offsets=offsets, left=(2,)), False)
    assert "not `left`" not in _decision(Calibration(offsets=offsets), False)
