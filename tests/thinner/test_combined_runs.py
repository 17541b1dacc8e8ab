"""Several runs as one: what must be alike, what the new folder says. That the logits are right is tests/laws/test_thinner.py."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from causal_bases import bilingual_base
from random_runs import TEXTS, random_run
from veneer import lora
from veneer.artifact import Loaded, load_artifact
from veneer.cli.runs import run_config
from veneer.errors import ArtifactError, InputError
from veneer.model import Classifier
from veneer.predictor import load
from veneer.run_info import read_info, update_info
from veneer.thinner import combine_runs, make_ensemble

Base = Callable[..., Path]


def combined(folders: list[Path], out: Path, weights: list[float] | None = None) -> Path:
    return combine_runs(folders, out, weights or [0.5] * len(folders), run_config(folders[0]), "no texts").folder


def frozen_weights(model: Classifier) -> list[lora.FrozenWeight]:
    return [one for one in model.network.modules() if isinstance(one, lora.FrozenWeight)]


def other(folder: Path, base: Path, **changes: Any) -> Path:
    return random_run(folder, base, seed=2, **changes)


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"labels": ("bad", "odd")}, "other labels than .*a: it lacks good and has odd"),
        ({"labels": ("bad", "good", "odd")}, "other labels than .*a: it has odd"),
        ({"pooling": "mean"}, "b: pooling mean, but cls in .*a"),
        ({"pooling": "mean"}, "b: head of the base's family no, but yes in .*a"),
        ({"bias": "all"}, "b was trained with lora.bias all, .*a with none"),
        ({"train_top_layers": 1}, "b has trained in full: bert.encoder.layer.1; classifier; .*a: classifier"),
    ],
)
def test_runs_that_do_not_go_together(changes: dict[str, Any], shown: str, tiny_base: Base, tmp_path: Path) -> None:
    folders = [random_run(tmp_path / "a", tiny_base()), other(tmp_path / "b", tiny_base(), **changes)]
    with pytest.raises(ArtifactError, match=shown):
        combined(folders, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


WORDS = {"template": "{text} =", "words": ["否", "是"], "length_normalised": False}


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bilingual_base(tmp_path_factory.mktemp("causal") / "base")


@pytest.mark.parametrize(
    ("verbaliser", "shown"),
    [
        (None, "b has a head, and reads no label words like .*a"),
        (WORDS | {"template": "{text}:"}, r"b: verbaliser.template '\{text\}:', but '\{text\} =' in .*a"),
        (
            WORDS | {"words": ["是", "否"]},
            "b: verbaliser.words {'bad': '是', 'good': '否'}, but {'bad': '否', 'good': '是'} in .*a",
        ),
        (WORDS | {"length_normalised": True}, "b: verbaliser.length_normalised True, but False in .*a"),
    ],
)
@pytest.mark.parametrize("together", [combined, lambda folders, out: make_ensemble(folders, out, run_config(folders[0]), "none")])
def test_other_label_words_are_not_put_together(
    together: Callable[..., Any], verbaliser: Any, shown: str, causal: Path, tmp_path: Path
) -> None:
    folders = [random_run(tmp_path / "a", causal, verbaliser=WORDS), other(tmp_path / "b", causal, verbaliser=verbaliser)]
    with pytest.raises(ArtifactError, match=shown):
        together(folders, tmp_path / "out")
    if verbaliser is None:
        with pytest.raises(ArtifactError, match=r"a reads label words, unlike .*b"):
            together(folders[::-1], tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


def test_runs_by_the_same_label_words_are_put_together(causal: Path, tmp_path: Path) -> None:
    """By the same word for a label, wherever it stands among the labels: there is no head whose rows would have to be moved."""
    turned = {"labels": ("good", "bad"), "verbaliser": WORDS | {"words": ["是", "否"]}}
    folders = [random_run(tmp_path / "a", causal, seed=1, verbaliser=WORDS), other(tmp_path / "b", causal, rank=2, **turned)]
    first, second = (load(folder, precision="fp32") for folder in folders)
    assert not torch.allclose(first.logits(TEXTS), second.logits(TEXTS)[:, [1, 0]], atol=0.1)
    for number, weights in enumerate(([1.0, 0.0], [0.0, 1.0])):
        logits = load(combined(folders, tmp_path / f"only-{number}", weights), precision="fp32").logits(TEXTS)
        torch.testing.assert_close(logits, (first.logits(TEXTS), second.logits(TEXTS)[:, [1, 0]])[number], rtol=1e-5, atol=1e-5)
    both = load(combined(folders, tmp_path / "both", [0.7, 0.2]), precision="fp32")
    assert both.info.verbaliser == WORDS
    layers = [lora.lora_layers(one.loaded.model) for one in (both, first, second)]
    for whole, one, two in zip(*(found.values() for found in layers), strict=True):
        torch.testing.assert_close(whole.delta(), 0.7 * one.delta() + 0.2 * two.delta(), rtol=1e-5, atol=1e-6)
    beside = load(make_ensemble(folders, tmp_path / "all", run_config(folders[0]), "no texts").folder, precision="fp32")
    chances = [one.logits(TEXTS).softmax(-1) for one in (first, second)]
    torch.testing.assert_close(beside.logits(TEXTS).softmax(-1), (chances[0] + chances[1][:, [1, 0]]) / 2, rtol=1e-5, atol=1e-6)
    models = [member.loaded.model.network for member in beside._loaded.members]  # type: ignore[union-attr]
    assert models[0].get_output_embeddings().weight is models[1].get_output_embeddings().weight


def test_another_base_is_named(tiny_base: Base, tmp_path: Path) -> None:
    folders = [random_run(tmp_path / "a", tiny_base("bert")), other(tmp_path / "b", tiny_base("ernie"))]
    with pytest.raises(ArtifactError, match=r"b: base sha256:\w+…, but sha256:\w+… in "):
        make_ensemble(folders, tmp_path / "out", run_config(folders[0]), "no texts")


@pytest.mark.parametrize("together", [combined, lambda folders, out: make_ensemble(folders, out, run_config(folders[0]), "none")])
def test_a_base_in_other_bits_is_another_base(together: Callable[..., Any], tiny_base: Base, tmp_path: Path) -> None:
    folders = [random_run(tmp_path / "a", tiny_base()), other(tmp_path / "b", tiny_base())]
    update_info(folders[1], replace(read_info(folders[1]), base_precision="nf4"))
    with pytest.raises(ArtifactError, match=r"b: base_precision nf4, but auto in .*a"):
        together(folders, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


@pytest.mark.parametrize("weights", [[1.0], [0.5, 0.5, 0.5], [1.0, -1.0], [float("nan"), 1.0], [float("inf"), 1.0]])
def test_weights_that_cannot_be_used(weights: list[float], tiny_base: Base, tmp_path: Path) -> None:
    folders = [random_run(tmp_path / "a", tiny_base()), other(tmp_path / "b", tiny_base())]
    with pytest.raises(InputError, match="--weights"):
        combined(folders, tmp_path / "out", weights)


def test_what_is_not_known_is_not_carried_over(tiny_base: Base, tmp_path: Path) -> None:
    folders = [random_run(tmp_path / "a", tiny_base(), seed=1), other(tmp_path / "b", tiny_base())]
    info, first = read_info(combined(folders, tmp_path / "out")), read_info(folders[0])
    assert (info.scores, info.calibration) == ({}, None)
    assert info.data_fingerprint not in {read_info(folder).data_fingerprint for folder in folders}
    assert (info.labels, info.base_fingerprint, info.max_length) == (first.labels, first.base_fingerprint, first.max_length)


def test_an_ensemble_is_whole_and_has_one_base_in_memory(tiny_base: Base, tmp_path: Path) -> None:
    folders = [random_run(tmp_path / "a", tiny_base(), seed=1), other(tmp_path / "b", tiny_base())]
    out = make_ensemble(folders, tmp_path / "out", run_config(folders[0]), "no texts").folder
    for folder in folders:
        folder.rename(folder.with_name(f"{folder.name}-gone"))
    predictor = load(out, precision="fp32")
    before = predictor.logits(TEXTS)
    first, second = (dict(member.loaded.model.network.named_parameters()) for member in predictor._loaded.members)  # type: ignore[union-attr]
    shared = {name for name in first if first[name] is second[name]}
    assert shared == {name for name, parameter in first.items() if not parameter.requires_grad}
    assert not any("lora" in name or "classifier" in name for name in shared)
    counted: list[int] = []
    predictor.predict(TEXTS, progress=counted.append)
    assert sum(counted) == len(TEXTS)
    assert (predictor.merge().logits(TEXTS) - before).abs().max() < 1e-4
    with pytest.raises(InputError, match="no single model"):
        _ = predictor.loaded
    assert load(out / "members" / "2").info.labels == ("bad", "good")
    assert run_config(out / "members" / "2").data.train == str(folders[1] / "gone.csv")
    with pytest.raises(ArtifactError, match="is an ensemble of 2 runs"):
        load_artifact(out)


@pytest.mark.parametrize("bits", ["int8", "nf4"])
def test_an_ensemble_over_fewer_bits_has_one_base_in_memory(
    bits: str, tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if bits == "nf4":
        pytest.importorskip("bitsandbytes")
    folders = [random_run(tmp_path / name, tiny_base(), seed=seed, base_precision=bits) for seed, name in enumerate("abc")]
    out = make_ensemble(folders, tmp_path / "out", run_config(folders[0]), "no texts").folder
    apart = [load(folder, precision="fp32").logits(TEXTS).softmax(-1) for folder in folders]
    made: list[weakref.ref[lora.FrozenWeight]] = []
    kept: list[int] = []  # weights in memory whenever a run is about to be loaded

    def loading(*args: Any, **options: Any) -> Loaded:
        gc.collect()
        kept.append(sum(one() is not None for one in made))
        loaded = load_artifact(*args, **options)
        made.extend(map(weakref.ref, frozen_weights(loaded.model)))
        return loaded

    monkeypatch.setattr("veneer.predictor.load_artifact", loading)
    predictor = load(out, precision="fp32")
    members = [member.loaded.model for member in predictor._loaded.members]  # type: ignore[union-attr]
    first, second, third = map(frozen_weights, members)
    assert len(first) == 12
    assert all(one is two is three for one, two, three in zip(first, second, third, strict=True))
    assert kept == [0, 12, 12]
    assert (predictor.logits(TEXTS).softmax(-1) - torch.stack(apart).mean(0)).abs().max() < 1e-6


def test_a_combined_run_can_be_combined_again(tiny_base: Base, tmp_path: Path) -> None:
    folders = [random_run(tmp_path / "a", tiny_base(), seed=1), other(tmp_path / "b", tiny_base(), layers=[0])]
    out = combined(folders, tmp_path / "out")
    again = combined([out, folders[1]], tmp_path / "again")
    assert sorted({layer.rank for layer in lora.lora_layers(load(again).loaded.model).values()}) == [4, 12]
