"""A run of several tasks, from its configuration to the folders that the other commands read."""

from __future__ import annotations

import io
import json
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

import veneer
from toy_runs import metrics, toy_rows, write_csv
from toy_tasks import MARKS, run_tasks, toy_tasks
from veneer.cli import main
from veneer.config_file import config_text, load_config
from veneer.errors import ConfigError, DataError, ResumeError
from veneer.packing import task_quotas
from veneer.training import joint_run

Base = Callable[..., Path]


def short_rows(count: int, labels: Sequence[str], most: int, seed: int) -> list[dict[str, str]]:
    """Texts that are their labels' names, `most` of them at most."""
    rng = random.Random(seed)
    given = [rng.sample(list(labels), rng.randint(1, most)) for _ in range(count)]
    return [{"text": " ".join(["the", *names]), "label": "|".join(names)} for names in given]


def test_two_tasks_are_learnt_together(tmp_path: Path, tiny_base: Base) -> None:
    """By adapters and heads of their own; `odd` is a word of one task alone, and `good` means another thing to each head."""
    write_csv(tmp_path / "moods.csv", short_rows(60, MARKS[:2], 1, seed=5))
    write_csv(tmp_path / "moods_dev.csv", short_rows(20, MARKS[:2], 1, seed=6))
    write_csv(tmp_path / "marks.csv", short_rows(40, MARKS, 2, seed=7))
    write_csv(tmp_path / "marks_dev.csv", short_rows(20, MARKS, 2, seed=8))
    config = toy_tasks(tmp_path, tiny_base("bert"), training__epochs=6, training__learning_rate=1e-2, lora__dropout=0.0)
    results = run_tasks(config)
    for name, result in results.items():
        assert result.evaluations["dev"].metrics["macro_f1"].value > 0.9, name
    predictor = veneer.load(results["moods"].folder)
    assert [one.labels for one in predictor.predict(["the good", "the bad"])] == [("good",), ("bad",)]
    assert set(veneer.load(results["marks"].folder).predict(["the good odd"])[0].labels) == {"good", "odd"}


def test_a_task_s_folder_is_that_of_any_run(tmp_path: Path, tiny_base: Base) -> None:
    """With the configuration of a run by itself, its own rows and epochs, and the best step by its own metric."""
    config = toy_tasks(tmp_path, tiny_base("bert"), **{"tasks.marks.metric": "loss"}, training__epochs=3)
    results = run_tasks(config)
    quotas = dict(zip(("moods", "marks"), task_quotas((42, 20), 2.0), strict=True))
    for name, result in results.items():
        folder = tmp_path / "run" / name
        assert result.folder == folder
        own = load_config(folder / "config.yaml")
        assert (own.tasks, own.data.train, own.out) == (None, str(tmp_path / f"{name}.csv"), str(folder))
        assert own.evaluation.metric == ("loss" if name == "marks" else "macro_f1")
        rows = metrics(folder)
        assert len(rows) == len(result.report["history"])
        steps = [row for row in rows if row["kind"] == "step"]
        assert [row["step"] for row in steps] == list(range(1, 25))
        texts = 42 if name == "moods" else 20
        assert steps[-1]["epoch"] == pytest.approx(3 * quotas[name] / texts, abs=1e-4)
        assert result.report["training"]["epochs"] == pytest.approx(3 * quotas[name] / texts)
        assert not any("/" in key or key == "task" for row in rows for key in row)
        scores = [row for row in rows if row["kind"] == "evaluation" and row["split"] == "dev"]
        best = min(scores, key=lambda row: row["loss"]) if name == "marks" else max(scores, key=lambda row: row["macro_f1"])
        assert result.report["training"]["best_step"] == best["step"]
        assert "trained together with 1 more" in (folder / "train.log").read_text(encoding="utf-8")
    joint = metrics(tmp_path / "run")
    assert joint[0]["loss"] == pytest.approx((joint[0]["loss/moods"] + joint[0]["loss/marks"]) / 2)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted(
        ["config.yaml", "marks", "metrics.jsonl", "moods", "train.log"]
    )


def test_an_adapter_trained_beside_another_is_no_other_at_temperature_1(tmp_path: Path, tiny_base: Base) -> None:
    """The other task's labels have no say: turned round they change nothing of this one."""
    config = toy_tasks(tmp_path, tiny_base("bert"), training__epochs=1, sampling_temperature=1.0, lora__dropout=0.2)
    run_tasks(config)
    rows = toy_rows(20, labels=MARKS, multi=True, seed=2)
    write_csv(
        tmp_path / "marks.csv", [{"text": row["text"], "label": "odd" if i % 2 else "bad|good"} for i, row in enumerate(rows)]
    )
    run_tasks(config.model_copy(update={"out": str(tmp_path / "other")}))
    first, second = (
        [(tmp_path / run / task / "adapter_model.safetensors").read_bytes() for task in ("moods", "marks")]
        for run in ("run", "other")
    )
    assert first[0] == second[0]
    assert first[1] != second[1]


def test_the_configuration_comes_back_as_it_was(tmp_path: Path, tiny_base: Base) -> None:
    config = toy_tasks(tmp_path, tiny_base("bert"), training__epochs=1)
    (tmp_path / "run.yaml").write_text(config_text(config), encoding="utf-8")
    tree = yaml.safe_load((tmp_path / "run.yaml").read_text(encoding="utf-8"))
    assert tree["tasks"].keys() == {"moods", "marks"}
    assert not {"data", "task"} & tree.keys()
    again = load_config(tmp_path / "run.yaml")
    assert again.tasks == config.tasks
    results = veneer.train(tmp_path / "run.yaml", console=Console(file=io.StringIO()))
    assert isinstance(results, dict)
    assert list(results) == ["moods", "marks"]


def test_auto_comes_to_the_same_for_all_tasks_by_all_texts(tmp_path: Path, tiny_base: Base) -> None:
    automatic = {f"training__{key}": "auto" for key in ("batch_size", "learning_rate", "precision")}
    results = run_tasks(toy_tasks(tmp_path, tiny_base("bert"), training__epochs=1, **automatic))
    trained = [load_config(result.folder / "config.yaml").training for result in results.values()]
    assert trained[0] == trained[1] == load_config(tmp_path / "run" / "config.yaml").training
    assert "auto" not in (trained[0].batch_size, trained[0].learning_rate, trained[0].precision)


def test_a_run_without_a_folder_is_named_by_its_tasks(tmp_path: Path, tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    results = run_tasks(toy_tasks(tmp_path, tiny_base("bert"), training__epochs=1, out=None))
    assert [str(result.folder) for result in results.values()] == ["runs/moods-marks/moods", "runs/moods-marks/marks"]


# Refusals


def refusal(config: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        run_tasks(config)
    assert not Path(config.out).exists()
    return str(caught.value)


def test_what_belongs_to_a_task_is_refused_at_the_top(tmp_path: Path) -> None:
    said = refusal(toy_tasks(tmp_path, "base", data__train="x.csv", data__max_length=30, task="single_label"))
    for key in ("data.train", "data.max_length", "task"):
        assert f"  {key}: each of the tasks has its own. Fix: tasks.moods.{key} instead, and no flag for it" in said
    assert len(said.splitlines()) == 4


@pytest.mark.parametrize(
    ("key", "value"),
    {
        "method": "head",
        "base_precision": "int8",
        "verbaliser.template": "{text} is",
        "lora.dora": True,
        "lora.init": "pissa",
        "lora.bias": "all",
        "lora.train_top_layers": 1,
        "lora.train_embeddings": True,
    }.items(),
)
def test_what_several_tasks_do_not_do(key: str, value: Any, tmp_path: Path) -> None:
    said = refusal(toy_tasks(tmp_path, "base", **{key: value}))
    assert f"\n  {key}: several tasks in one pass are trained by plain LoRA" in said


def test_weights_of_labels_belong_to_a_task(tmp_path: Path, tiny_base: Base) -> None:
    weights = {"good": 1.0, "bad": 2.0}
    assert "training.class_weights: the tasks have other labels" in refusal(
        toy_tasks(tmp_path, "base", **{"training.class_weights": weights})
    )
    config = toy_tasks(tmp_path, tiny_base("bert"), **{"tasks.moods.class_weights": weights, "training.epochs": 1})
    assert joint_run.task_config(config, "moods").training.class_weights == weights
    assert joint_run.task_config(config, "marks").training.class_weights is None


def test_every_problem_of_every_task_s_files_is_told_at_once(tmp_path: Path) -> None:
    config = toy_tasks(tmp_path, "base")
    write_csv(tmp_path / "moods.csv", [{"text": "", "label": "good"}, {"text": "a", "label": ""}])
    (tmp_path / "marks.csv").unlink()
    with pytest.raises(DataError) as caught:
        run_tasks(config)
    said = str(caught.value)
    assert "task moods: " in said
    assert "the text is empty" in said
    assert "the label is missing" in said
    assert f"task marks: {tmp_path}/marks.csv: no such file" in said
    assert not (tmp_path / "run").exists()


def test_a_column_that_is_not_there_is_named_by_the_task_s_key(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"task moods: .*no column 'review'[\s\S]*--text is tasks\.NAME\.data\.text"):
        run_tasks(toy_tasks(tmp_path, "base", **{"tasks.moods.data.text": "review"}))


def test_a_task_without_a_file(tmp_path: Path) -> None:
    assert "tasks.more.data.train: no training file" in refusal(toy_tasks(tmp_path, "base", **{"tasks.more.task": "auto"}))


def test_another_temperature_or_task_s_data_is_another_run(
    tmp_path: Path, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = toy_tasks(tmp_path, tiny_base("bert"), training__epochs=1)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(joint_run, "finish", stop)
        with pytest.raises(veneer.VeneerError, match="To go on"):
            run_tasks(config)
    with pytest.raises(ResumeError, match=r"configuration\.sampling_temperature: was 2\.0, is 3\.0"):
        run_tasks(toy_tasks(tmp_path, tiny_base("bert"), training__epochs=1, sampling_temperature=3.0), resume=True)
    write_csv(tmp_path / "marks.csv", toy_rows(19, labels=MARKS, multi=True, seed=2))
    with pytest.raises(ResumeError, match=r"marks train: .*marks\.csv has 19 rows now, it had 20"):
        run_tasks(config, resume=True)


# The commands


def command(*words: object, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["veneer", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        main()
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


def test_the_commands(
    tmp_path: Path, tiny_base: Base, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*words: object) -> tuple[int, str, str]:
        return command(*words, capsys=capsys, monkeypatch=monkeypatch)

    config = toy_tasks(tmp_path, tiny_base("bert"), training__epochs=1)
    (tmp_path / "run.yaml").write_text(config_text(config), encoding="utf-8")
    monkeypatch.setattr("veneer.training.finish.plot_curves", lambda *_: None)
    out = tmp_path / "run"
    code, said, _ = run("train", tmp_path / "run.yaml")
    assert code == 0
    for name in ("moods", "marks"):
        assert f"veneer predict {out}/{name}" in " ".join(said.split())
        code, said_of_one, _ = run("evaluate", out / name, "--data", tmp_path / f"{name}_dev.csv", "--json")
        assert code == 0
        assert json.loads(said_of_one)
        assert run("report", out / name)[0] == 0
        assert run("merge", out / name, "--out", tmp_path / f"merged-{name}")[0] == 0
    for words in (["predict", out, "--text", "hi"], ["inspect", out]):
        code, _, err = run(*words)
        assert code == 2
        assert f"holds the runs of 2 tasks trained together. Fix: one of them: {out}/marks, {out}/moods" in " ".join(err.split())
    for words in (["inspect", tmp_path / "run.yaml"], ["estimate", tmp_path / "run.yaml"]):
        code, _, err = run(*words)
        assert code == 2
        assert "is a file, not a base" in err
    code, _, err = run("train", tmp_path / "run.yaml", "--train", "x.csv", "--out", tmp_path / "else")
    assert code == 2
    assert "data.train: each of the tasks has its own" in err
