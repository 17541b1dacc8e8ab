"""From files to splits: one report of what is wrong, the task, the labels, and what is split off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from toy_runs import toy_config, toy_rows, write_csv
from veneer.errors import ConfigError, DataError
from veneer.training.prepare import Material, columns_of, read_material


def material(folder: Path, **changes: Any) -> Material:
    return read_material(toy_config(folder, "no-base", **changes))


def write_json(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text(json.dumps(rows), encoding="utf-8")
    return str(path)


def test_one_report_of_all_problems_of_all_files(tmp_path: Path) -> None:
    rows = toy_rows(8)
    write_csv(tmp_path / "train.csv", [*rows, {"text": "", "label": "good"}, {"text": "why", "label": ""}])
    write_csv(tmp_path / "dev.csv", [*toy_rows(3, seed=1), {"text": "how", "label": "goood"}])
    write_csv(tmp_path / "test.csv", [{"text": " ", "label": "bad"}, rows[0]])
    with pytest.raises(DataError) as refused:
        material(tmp_path, data__test=str(tmp_path / "test.csv"))
    said = str(refused.value)
    assert said.startswith("4 errors")
    for place in ("train.csv, row 9 (line 10), column 'text'", "train.csv, row 10 (line 11), column 'label'"):
        assert place in said
    for place in ("dev.csv, row 4, column 'label'", "test.csv, row 1 (line 2), column 'text'"):
        assert place in said
    assert "'good'" in said  # the nearest label to 'goood'
    assert "train-test-duplicates" in said


def test_files_that_cannot_be_read_are_told_together(tmp_path: Path) -> None:
    """And with them what is wrong with the rows of the others."""
    write_csv(tmp_path / "train.csv", [*toy_rows(8), {"text": "", "label": "good"}])
    write_csv(tmp_path / "test.csv", [{"text": "a", "sentiment": "good"}])
    with pytest.raises(DataError) as refused:
        material(tmp_path, data__dev=str(tmp_path / "nowhere.csv"), data__test=str(tmp_path / "test.csv"))
    said = str(refused.value)
    assert "nowhere.csv: no such file" in said
    assert "test.csv: no column 'label'" in said
    assert "train.csv, row 9" in said


def test_a_development_set_is_split_off(tmp_path: Path) -> None:
    """In proportion, by the seed alone, and nothing is in both."""
    toy_config(tmp_path, "no-base")
    splits = [material(tmp_path, data__dev=None, data__dev_fraction=0.25, seed=seed).examples for seed in (1, 1, 2)]
    assert splits[0] == splits[1]
    assert splits[0] != splits[2]
    train, dev = splits[0]["train"], splits[0]["dev"]
    assert splits[0].keys() == {"train", "dev"}
    assert not {example.text for example in train} & {example.text for example in dev}
    assert len(train) + len(dev) == 42
    assert 8 <= len(dev) <= 13
    assert {example.labels for example in dev} == {("good",), ("bad",)}


def test_a_test_set_is_split_off_or_read(tmp_path: Path) -> None:
    toy_config(tmp_path, "no-base")
    assert material(tmp_path, data__test_fraction=0.2).examples.keys() == {"train", "dev", "test"}
    write_csv(tmp_path / "test.csv", toy_rows(5, seed=9))
    read = material(tmp_path, data__test=str(tmp_path / "test.csv"), data__test_fraction=0.2)
    assert [len(read.examples[name]) for name in ("train", "dev", "test")] == [42, 12, 5]
    assert read.fingerprints.keys() == {"train", "dev", "test"}


def test_too_few_rows_to_split_are_told(tmp_path: Path) -> None:
    write_csv(tmp_path / "two.csv", toy_rows(2))
    with pytest.raises(DataError, match=r"(?s)two|2 rows"):
        material(tmp_path, data__train=str(tmp_path / "two.csv"), data__dev=None)


def test_too_few_rows_to_split_come_with_the_problems_that_say_why(tmp_path: Path) -> None:
    rows = [{"text": f"the film was seen {i} times", "label": f"label {i}"} for i in range(8)]
    write_csv(tmp_path / "each.csv", rows)
    with pytest.raises(DataError) as refused:
        material(tmp_path, data__train=str(tmp_path / "each.csv"), data__dev=None)
    said = str(refused.value)
    assert "each.csv: 8 rows are too few to split off dev" in said
    assert "labels that only one training row has: 8 [label-seen-once]" in said


def test_a_label_column_that_holds_no_classes_stops_before_anything_is_split(tmp_path: Path) -> None:
    rows = [{"text": f"the film was seen {i} times", "label": f"{i / 7:.4f}"} for i in range(60)]
    write_csv(tmp_path / "scores.csv", rows)
    for dev in (None, str(tmp_path / "scores.csv")):
        with pytest.raises(DataError, match=r"column 'label'.*60 different labels in 60 rows.*\[labels-are-no-classes\]"):
            material(tmp_path, data__train=str(tmp_path / "scores.csv"), data__dev=dev)


def test_the_task_is_that_of_the_file(tmp_path: Path) -> None:
    read = material(tmp_path)
    assert (read.task.name, read.labels.names, read.pair) == ("single_label", ("bad", "good"), False)
    for name, seed in (("train", 0), ("dev", 1)):
        write_csv(tmp_path / f"{name}.csv", toy_rows(30, labels=("good", "bad", "odd"), multi=True, seed=seed))
    read = material(tmp_path, data__label_separator="|")
    assert (read.task.name, read.labels.names) == ("multi_label", ("bad", "good", "odd"))


def test_several_labels_or_none_in_a_single_label_task_are_in_the_report(tmp_path: Path) -> None:
    rows = [{"text": row["text"], "label": [row["label"]]} for row in toy_rows(8)]
    train = write_json(
        tmp_path / "train.json", [*rows, {"text": "both", "label": ["good", "bad"]}, {"text": "", "label": ["good"]}]
    )
    dev = write_json(tmp_path / "dev.json", [*rows[:2], {"text": "neither", "label": []}])
    with pytest.raises(DataError) as refused:
        material(tmp_path, data__train=train, data__dev=dev, task="single_label")
    said = str(refused.value)
    for place in ("train.json, row 9", "train.json, row 10", "dev.json, row 3"):
        assert place in said
    assert "task: multi_label" in said


def test_a_single_label_task_whose_dev_file_has_rows_without_labels(tmp_path: Path) -> None:
    """The training file's shape makes the task; a list in dev that is empty is an error with its place."""
    train = write_json(tmp_path / "train.json", toy_rows(8))
    dev = write_json(tmp_path / "dev.json", [*toy_rows(2, seed=1), {"text": "why", "label": []}])
    with pytest.raises(DataError, match=r"dev\.json, row 3"):
        material(tmp_path, data__train=train, data__dev=dev)


def test_label_names_give_order_and_meaning(tmp_path: Path) -> None:
    rows = [row | {"label": str(int(row["label"] == "good"))} for row in toy_rows(10)]
    write_csv(tmp_path / "train.csv", rows)
    write_csv(tmp_path / "dev.csv", rows[:4])
    (tmp_path / "names.txt").write_text("\ufeffnegative\npositive\n\n", encoding="utf-8")
    for names in (str(tmp_path / "names.txt"), ["negative", "positive"]):
        read = material(tmp_path, data__label_names=names)
        assert read.labels.names == ("negative", "positive")
        assert read.examples["train"][0].labels == ("positive",)
    with pytest.raises(ConfigError, match=r"data\.label_names: cannot read .*nowhere"):
        columns_of(toy_config(tmp_path, "no-base", data__label_names=str(tmp_path / "nowhere")).data)


def test_pairs_are_an_input_shape(tmp_path: Path) -> None:
    for name, seed in (("train", 0), ("dev", 1)):
        write_csv(tmp_path / f"{name}.csv", [row | {"other": "b"} for row in toy_rows(8, seed=seed)])
    read = material(tmp_path, data__pair="other")
    assert read.pair
    assert read.examples["train"][0].pair == "b"


def test_no_training_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Fix: --train FILE"):
        material(tmp_path, data__train=None)
    with pytest.raises(DataError, match="nowhere"):
        material(tmp_path, data__train=str(tmp_path / "nowhere.csv"))


def test_real_pairs_and_label_ids(shared_data: Any, tmp_path: Path) -> None:
    """AFQMC's CSV pairs with its JSON lines, and GoEmotions' headerless label ids, as they are."""
    read = material(
        tmp_path,
        data__train=str(shared_data("afqmc/dev.csv")),
        data__dev=str(shared_data("afqmc/dev.json")),
        data__text="sentence1",
        data__pair="sentence2",
    )
    assert (read.task.name, read.pair, len(read.labels)) == ("single_label", True, 2)
    read = material(
        tmp_path,
        data__train=str(shared_data("goemotions/dev.tsv")),
        data__dev=str(shared_data("goemotions/test.tsv")),
        data__text=0,
        data__label=1,
        data__label_separator=",",
        data__label_names=str(shared_data("goemotions/labels.txt")),
    )
    assert (read.task.name, len(read.labels), read.labels[27]) == ("multi_label", 28, "neutral")
    assert len(read.examples["train"]) == 5426
