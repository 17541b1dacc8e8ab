"""A run made smaller: what is searched for, what is written, what is left alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from causal_bases import bilingual_base, toy_pairs
from toy_runs import run, toy_config, toy_rows, write_csv
from veneer import lora
from veneer.cli.compared_run import open_run
from veneer.errors import InputError, VerificationError
from veneer.evaluation.goals import Goal
from veneer.predictor import load
from veneer.run_info import read_info, update_info
from veneer.tasks import PLAIN, Calibration, Promise
from veneer.thinner import Dev, Shrunk, shrink_run
from veneer.thinner.shrink import refit, smallest

Base = Callable[..., Path]


@pytest.fixture(scope="session")
def learned(tiny_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learned its task, over enough dev texts to be calibrated on."""
    folder = tmp_path_factory.mktemp("learned")
    write_csv(folder / "train.csv", toy_rows(160))
    write_csv(folder / "dev.csv", toy_rows(60, seed=1))
    return run(toy_config(folder, tiny_base(), training__epochs=6, lora__rank=8)).folder


def dev_of(folder: Path) -> Dev:
    opened = open_run(folder)
    return Dev.of(opened.material, opened.config, opened.info.label_set)


def shrunk(folder: Path, out: Path, keep: float = 0.99, **options: Any) -> Shrunk:
    return shrink_run(folder, out, dev_of(folder), open_run(folder).config, keep=keep, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_learned_run_gets_much_smaller_and_keeps_its_score(learned: Path, tmp_path: Path) -> None:
    before = contents(learned)
    out = tmp_path / "small"
    made = shrunk(learned, out, goal=Goal())
    assert contents(learned) == before
    assert made.before.value > 0.8
    assert made.after.value >= made.bound >= 0.99 * made.before.value
    assert made.parameters[1] < made.parameters[0]
    assert made.stored == tuple((folder / "adapter_model.safetensors").stat().st_size for folder in (learned, out))
    assert made.stored[1] < made.stored[0]
    settings = lora.read_adapter(out).settings
    assert {name: settings.rank_of(name) for name in settings.layers} == {
        name: new for name, (_, new) in made.ranks.items() if new
    }
    assert 0 < made.energy < 1
    assert made.passes <= 8  # 96 values


def test_the_new_run_is_a_run(learned: Path, tmp_path: Path) -> None:
    out = tmp_path / "small"
    made = shrunk(learned, out, goal=Goal())
    assert (tmp_path / "small" / "tokenizer.json").exists()
    info, old = read_info(out), read_info(learned)
    assert made.calibration == "fitted again on dev"
    assert info.scores[made.metric] == made.after.value
    assert replace(info, scores=old.scores, calibration=old.calibration, precision=old.precision) == old
    dev, opened = dev_of(out), open_run(out)
    assert opened.config.out == str(out)
    predictor = load(out)
    logits = dev.logits(predictor)
    assert dev.score(logits, predictor.calibration).value == made.after.value
    assert predictor.calibration.to_json() == dev.fit(logits).calibration.to_json()
    again = shrunk(out, tmp_path / "smaller")
    assert again.parameters[0] == made.parameters[1]
    assert again.calibration.startswith("kept: what it was fitted for is not known")


PAIRS = {"data__pair": "pair", "data__max_length": 80}
WORDS = {"verbaliser__template": "{text}\n{pair}\nAnswer:", "verbaliser__words": {"different": "否", "same": "是"}}
WAYS: dict[str, dict[str, Any]] = {
    "label words": PAIRS | WORDS,
    "int8": {"base_precision": "int8"},
    "pairs": PAIRS,
}


@pytest.mark.parametrize("way", WAYS)
def test_whatever_a_run_is_it_can_be_shrunk(way: str, tiny_base: Base, tmp_path: Path) -> None:
    base = bilingual_base(tmp_path / "base") if way == "label words" else tiny_base()
    pairs = "data__pair" in WAYS[way]
    if pairs:
        write_csv(tmp_path / "train.csv", toy_pairs(40))
        write_csv(tmp_path / "dev.csv", toy_pairs(20, seed=1))
    folder = run(toy_config(tmp_path, base, evaluation__baseline=False, **WAYS[way])).folder
    made = shrunk(folder, tmp_path / "small", goal=Goal())
    assert made.after.value >= made.bound
    assert made.stored[1] < made.stored[0]
    predictor = load(tmp_path / "small")
    info, old = read_info(tmp_path / "small"), read_info(folder)
    assert (info.verbaliser, info.base_precision, info.pair) == (old.verbaliser, old.base_precision, pairs)
    first, second = predictor.predict(["a good film", "bad work"], ["was it good", "a great film"] if pairs else None)
    assert first.scores.keys() == set(old.labels)
    assert first.scores != second.scores
    report = json.loads((tmp_path / "small" / "report.json").read_text())
    assert report["made_from"]["how"] == "shrink"
    assert report["evaluations"]["dev"]["metrics"][made.metric] == made.after.value
    assert (tmp_path / "small" / "report.html").is_file()


def test_all_of_the_score_is_kept_where_that_is_asked(learned: Path, tmp_path: Path) -> None:
    made = shrunk(learned, tmp_path / "small", keep=1.0)
    assert made.bound == made.before.value <= made.after.value


def test_a_score_may_not_fall_below_its_interval(learned: Path, tmp_path: Path) -> None:
    made = shrunk(learned, tmp_path / "small", keep=0.01)
    assert made.bound == made.before.low > 0.01
    assert made.after.value >= made.bound


def test_an_untrained_adapter_keeps_one_rank(tiny_base: Base, tmp_path: Path) -> None:
    folder = run(toy_config(tmp_path, tiny_base(), training__epochs=1, training__learning_rate=1e-9)).folder
    made = shrunk(folder, tmp_path / "small")
    assert sum(new for _, new in made.ranks.values()) == 1


def test_with_trained_biases_every_layer_keeps_a_rank(tiny_base: Base, tmp_path: Path) -> None:
    folder = run(toy_config(tmp_path, tiny_base(), training__epochs=1, lora__bias="lora_only")).folder
    made = shrunk(folder, tmp_path / "small", keep=0.5)
    assert min(new for _, new in made.ranks.values()) == 1
    first, second = (lora.read_adapter(one).tensors for one in (folder, tmp_path / "small"))
    assert all(torch.equal(first[name], second[name]) for name in first if "lora_" not in name)


def test_nothing_is_overwritten(learned: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="exists, and nothing is overwritten"):
        shrunk(learned, tmp_path)


def test_a_folder_that_gives_other_logits_is_not_kept(learned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("veneer.thinner.folder.load", lambda folder, **_: load(learned, precision="fp32"))
    with pytest.raises(VerificationError, match=r"small was not written: .* other logits"):
        shrunk(learned, tmp_path / "small")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("least", range(1, 13))
def test_bisection_finds_the_least_number(least: int) -> None:
    asked: list[int] = []

    def passes(number: int) -> bool:
        asked.append(number)
        return number >= least

    assert smallest(12, passes) == least
    assert len(asked) <= 4
    assert 12 not in asked


class TestTheCalibration:
    def test_promises_are_made_again(self, learned: Path, tmp_path: Path) -> None:
        folder = Path(shutil.copytree(learned, tmp_path / "run"))
        promising = Calibration(coverage=Promise(0.9, 0.5, 30))
        update_info(folder, replace(read_info(folder), calibration=promising.to_json()))
        shrunk(folder, tmp_path / "small", goal=Goal())
        coverage = load(tmp_path / "small").calibration.coverage
        assert coverage is not None
        assert (coverage.target, coverage.texts) == (0.9, 30)
        assert coverage.level != 0.5

    def test_where_it_is_kept_the_report_tells_nothing_that_was_measured_with_it(self, learned: Path, tmp_path: Path) -> None:
        assert shrunk(learned, tmp_path / "small", goal=None).calibration.startswith("kept: ")
        of_run, report = (json.loads((one / "report.json").read_text()) for one in (learned, tmp_path / "small"))
        kept = {key: of_run["calibration"][key] for key in ("target", "texts", "split", "method", "parameters")}
        assert report["calibration"] == kept
        assert kept["parameters"] == read_info(tmp_path / "small").calibration

    def test_a_run_without_one_stays_without(self, learned: Path, tmp_path: Path) -> None:
        folder = Path(shutil.copytree(learned, tmp_path / "run"))
        update_info(folder, replace(read_info(folder), calibration=None))
        assert shrunk(folder, tmp_path / "small", goal=Goal()).calibration == "none"
        assert json.loads((tmp_path / "small" / "veneer.json").read_text())["calibration"] is None

    def test_it_is_kept_where_a_new_one_would_cost_the_score_or_cannot_be_had(self, learned: Path) -> None:
        dev = dev_of(learned)
        logits = dev.logits(load(learned))
        assert refit(dev, logits, PLAIN, Goal(), bound=1.1) == (None, "kept: fitted again it would cost more of the score")
        torch.manual_seed(0)
        promising = Calibration(precision=Promise(0.9999, 0.5, 30))
        calibration, told = refit(dev, torch.randn(len(logits), 2), promising, Goal(), bound=0.0)
        assert calibration is None
        assert told.startswith("kept: ")
