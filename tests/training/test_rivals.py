"""The ways an adapter is compared with: each decides on the judged split, and trains what it says it trains."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from toy_runs import toy_config, toy_rows, write_csv
from veneer.bases import find_base
from veneer.errors import Interrupted
from veneer.model import build_classifier
from veneer.training import rivals
from veneer.training.prepare import read_material
from veneer.training.rivals import (
    Ground,
    embedding_contender,
    full_contender,
    head_contender,
    majority_contender,
    text_contender,
)

Base = Callable[..., Path]


def ground_of(folder: Path, base: Path, *, multi: bool = False, test: bool = True, **changes: Any) -> Ground:
    labels = ("good", "bad", "odd") if multi else ("good", "bad")
    sizes = {"train": 41, "dev": 14, "test": 11}
    for seed, (name, count) in enumerate(sizes.items()):
        write_csv(folder / f"{name}.csv", toy_rows(count, labels=labels, multi=multi, seed=seed))
    settings: dict[str, Any] = {"data__test": str(folder / "test.csv")} if test else {}
    if multi:
        settings["data__label_separator"] = "|"
    config = toy_config(folder, base, **settings, **changes)
    return Ground.of(config, read_material(config), find_base(str(base)))


def quiet() -> Console:
    return Console(file=io.StringIO())


@pytest.mark.parametrize("multi", [False, True])
def test_every_contender_decides_on_the_judged_split(tmp_path: Path, tiny_base: Base, multi: bool) -> None:
    ground = ground_of(tmp_path, tiny_base(), multi=multi, pooling="mean")
    seen: list[int] = []
    ground = ground.with_vectors(seen.append)
    contenders = [
        majority_contender(ground),
        text_contender(ground),
        embedding_contender(ground),
        head_contender(ground, quiet()),
        full_contender(ground, quiet()),
    ]
    assert sum(seen) == 41 + 14 + 11
    for one in contenders:
        assert one is not None
        assert one.decisions.shape == ((11, 3) if multi else (11,))
        assert one.note
    network = build_classifier(ground.base, 3 if multi else 2, pooling="mean")
    classes, width = (3 if multi else 2), 32
    counts = [one.parameters for one in contenders if one is not None]
    assert counts[0] == 0
    assert counts[2:4] == [classes * (width + 1)] * 2
    assert counts[4] == sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("test", [False, True])
def test_what_is_fitted_is_calibrated_as_the_adapter_is(
    tmp_path: Path, tiny_base: Base, monkeypatch: pytest.MonkeyPatch, test: bool
) -> None:
    """By its logits on dev; thresholds are no merit of one contender alone."""
    given = []

    def decide(config: Any, material: Any, logits: Any) -> np.ndarray[Any, Any]:
        given.append({name: tuple(one.shape) for name, one in logits.items()})
        return np.full(len(given), len(given))

    monkeypatch.setattr(rivals, "decide_like_ours", decide)
    ground = ground_of(tmp_path, tiny_base(), multi=True, test=test, pooling="mean")
    contenders = [
        text_contender(ground),
        embedding_contender(ground.with_vectors(lambda _: None)),
        head_contender(ground, quiet()),
        full_contender(ground, quiet()),
    ]
    assert given == [{"dev": (14, 3), "test": (11, 3)} if test else {"dev": (14, 3)}] * 4
    for number, one in enumerate(contenders, 1):
        assert one is not None
        assert one.decisions.tolist() == [number] * number


def test_dev_is_judged_where_there_is_no_test(tmp_path: Path, tiny_base: Base) -> None:
    assert len(majority_contender(ground_of(tmp_path, tiny_base(), test=False)).decisions) == 14


def test_the_majority_is_of_the_training_texts(tmp_path: Path, tiny_base: Base) -> None:
    found = majority_contender(ground_of(tmp_path, tiny_base()))
    assert found.note == "always good"  # 21 of 41
    assert set(found.decisions.tolist()) == {1}


@pytest.mark.parametrize(("rate", "answers"), [(0.0, [1, 1]), (0.3, [1, 2])])
def test_what_drops_nothing_answers_once(
    rate: float, answers: list[int], tmp_path: Path, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The adapter's dropout may be all there is in a run with R-Drop; a head alone is trained without the base's."""
    asked: list[int] = []
    make = rivals.make_job

    def kept(model: Any, config: Any, *given: Any) -> Any:
        asked.append(config.training.answers)
        return make(model, config, *given)

    monkeypatch.setattr(rivals, "make_job", kept)
    ground = ground_of(tmp_path, tiny_base(), pooling="mean", training__r_drop=1.0, training__base_dropout=rate)
    head_contender(ground, quiet())
    full_contender(ground, quiet())
    assert asked == answers


def test_embeddings_are_those_of_the_frozen_base(tmp_path: Path, tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    """Standardised by the training texts alone."""
    given: list[np.ndarray[Any, Any]] = []

    def fit_linear(train: Any, dev: Any, judged: Any) -> None:
        given.extend([train, dev])

    monkeypatch.setattr(rivals, "fit_linear", fit_linear)
    ground = ground_of(tmp_path, tiny_base(), pooling="mean")
    assert embedding_contender(ground.with_vectors(lambda _: None)) is None
    model = build_classifier(ground.base, 2, pooling="mean")
    with torch.no_grad():
        plain = [
            model.pooled(model.batch(split.texts, range(len(split)))).numpy()
            for split in (ground.splits["train"], ground.splits["dev"])
        ]
    expected = (plain[1] - plain[0].mean(axis=0)) / plain[0].std(axis=0)
    np.testing.assert_allclose(given[0].mean(axis=0), 0.0, atol=1e-4)
    np.testing.assert_allclose(given[1], expected, rtol=1e-3, atol=1e-3)


def test_the_head_alone_leaves_the_base_as_it_is(tmp_path: Path, tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    """The family's own head is trained where the base did not supply it; full fine-tuning moves the base."""
    made = []
    make = rivals.make_model

    def kept(*given: Any) -> Any:
        made.append(make(*given))
        return made[-1]

    monkeypatch.setattr(rivals, "make_model", kept)
    ground = ground_of(tmp_path, tiny_base(), pooling="cls").with_vectors(lambda _: None)
    before = {name: tensor.clone() for name, tensor in build_classifier(ground.base, 2, pooling="cls").state_dict().items()}
    head_contender(ground, quiet())
    full_contender(ground, quiet())
    moved = [
        {
            name
            for name, tensor in model.state_dict().items()
            if "classifier" not in name and not torch.equal(tensor, before[name])
        }
        for model in made
    ]
    assert moved[0] == set()
    assert any("layer.0.attention" in name for name in moved[1])
    assert any("word_embeddings" in name for name in moved[1])


def test_a_stop_keeps_nothing(tmp_path: Path, tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise Interrupted("a checkpoint is saved")

    monkeypatch.setattr(rivals, "fit", stopped)
    with pytest.raises(Interrupted, match="nothing of it is kept"):
        head_contender(ground_of(tmp_path, tiny_base()), quiet())
