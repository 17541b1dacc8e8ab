"""`veneer evaluate`"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sklearn.metrics import f1_score

from toy_runs import write_csv
from veneer.predictor import load


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def evaluate(veneer: Callable[..., Any], *arguments: object) -> dict[str, Any]:
    result = veneer("evaluate", *arguments, "--json")
    assert result.code == 0, result.err
    document: dict[str, Any] = json.loads(result.out)
    return document


def test_scores_are_those_of_the_predictions(veneer: Callable[..., Any], single_run: Path) -> None:
    data = single_run.parent / "train.csv"
    document = evaluate(veneer, single_run, "--data", data)
    rows = rows_of(data)
    decided = [prediction.labels[0] for prediction in load(single_run).predict([row["text"] for row in rows])]
    true = [row["label"] for row in rows]
    assert document["n"] == len(rows)
    assert document["metrics"]["macro_f1"] == pytest.approx(f1_score(true, decided, average="macro"))
    assert [item["label"] for item in document["per_class"]] == ["bad", "good"]
    assert document["confusion"]["labels"] == ["bad", "good"]


def test_columns_and_the_separator_are_those_of_the_run(veneer: Callable[..., Any], multi_run: Path) -> None:
    document = evaluate(veneer, multi_run, "--data", multi_run.parent / "dev.csv")
    rows = rows_of(multi_run.parent / "dev.csv")
    assert [item["support"] for item in document["per_class"]] == [
        sum(label in row["label"].split("|") for row in rows) for label in ("bad", "good", "odd")
    ]
    assert len(document["confusion"]["matrix"]) == 3


def test_other_columns_can_be_named(veneer: Callable[..., Any], single_run: Path, tmp_path: Path) -> None:
    dev = single_run.parent / "dev.csv"
    other = write_csv(tmp_path / "other.csv", [{"words": row["text"], "kind": row["label"]} for row in rows_of(dev)])
    document = evaluate(veneer, single_run, "--data", other, "--text", "words", "--label", "kind")
    assert document == evaluate(veneer, single_run, "--data", dev)


def test_intervals_are_as_many_as_the_run_asks_for(veneer: Callable[..., Any], single_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for path in single_run.iterdir():
        if path.is_file():
            (run / path.name).write_bytes(path.read_bytes())
    config = (run / "config.yaml").read_text(encoding="utf-8")
    (run / "config.yaml").write_text(config.replace("bootstrap: 0", "bootstrap: 50"), encoding="utf-8")
    assert evaluate(veneer, single_run, "--data", single_run.parent / "dev.csv")["intervals"] == {}
    low, high = evaluate(veneer, run, "--data", single_run.parent / "dev.csv")["intervals"]["accuracy"]
    assert 0 <= low <= high <= 1


def test_pairs(veneer: Callable[..., Any], pair_run: Path, tmp_path: Path) -> None:
    assert evaluate(veneer, pair_run, "--data", pair_run.parent / "dev.csv")["n"] == 10
    result = veneer("evaluate", pair_run, "--data", pair_run.parent / "dev.csv", "--pair", "three")
    assert result.code == 2
    assert "no column 'three' for the pair" in result.err


def test_the_last_steps_adapter_uses_the_runs_columns(veneer: Callable[..., Any], pair_run: Path) -> None:
    assert evaluate(veneer, pair_run / "last", "--data", pair_run.parent / "dev.csv")["n"] == 10


def test_a_label_the_model_does_not_know(veneer: Callable[..., Any], single_run: Path, tmp_path: Path) -> None:
    data = write_csv(tmp_path / "d.csv", [{"text": "a", "label": "good"}, {"text": "b", "label": "goood"}])
    result = veneer("evaluate", single_run, "--data", data)
    assert result.code == 2
    assert "row 2" in result.err
    assert "goood" in result.err
    assert "perhaps 'good'" in result.err


def test_a_row_that_cannot_be_scored_stops_it(veneer: Callable[..., Any], single_run: Path, tmp_path: Path) -> None:
    data = write_csv(tmp_path / "d.csv", [{"text": "a", "label": "good"}, {"text": " ", "label": "bad"}])
    result = veneer("evaluate", single_run, "--data", data, "--json")
    assert (result.code, result.out) == (2, "")
    assert "row 2" in result.err


def test_one_class_alone_can_be_scored(veneer: Callable[..., Any], single_run: Path, tmp_path: Path) -> None:
    data = write_csv(tmp_path / "d.csv", [{"text": "a", "label": "good"}, {"text": "b", "label": "good"}])
    assert evaluate(veneer, single_run, "--data", data)["n"] == 2


def test_label_ids_need_no_file_of_names_any_more(
    veneer: Callable[..., Any], tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    from toy_runs import run, toy_config

    ids = {"good": "0", "bad": "1"}
    toy_config(tmp_path, tiny_base())  # writes the files
    for name in ("train", "dev"):
        write_csv(tmp_path / f"{name}.csv", [row | {"label": ids[row["label"]]} for row in rows_of(tmp_path / f"{name}.csv")])
    (tmp_path / "names.txt").write_text("good\nbad\n", encoding="utf-8")
    folder = run(toy_config(tmp_path, tiny_base(), data__label_names=str(tmp_path / "names.txt"), training__epochs=1)).folder
    (tmp_path / "names.txt").unlink()
    document = evaluate(veneer, folder, "--data", tmp_path / "dev.csv")
    assert [item["label"] for item in document["per_class"]] == ["good", "bad"]


def test_tables_fit_80_columns(veneer: Callable[..., Any], multi_run: Path) -> None:
    result = veneer("evaluate", multi_run, "--data", multi_run.parent / "dev.csv")
    assert result.code == 0
    assert "Scores on 15 texts" in result.out
    assert all(len(line) <= 80 for line in result.out.splitlines())


def test_a_run_without_its_configuration_asks_for_the_columns(
    veneer: Callable[..., Any], bare_run: Callable[[Path], Path], pair_run: Path
) -> None:
    bare, dev = bare_run(pair_run), pair_run.parent / "dev.csv"
    for flags in ([], ["--text", "one"], ["--label", "label"]):
        refused = veneer("evaluate", bare, "--data", dev, "--pair", "two", *flags)
        assert refused.code == 2
        assert "has no config.yaml" in refused.err
        assert "or give --text COLUMN --label COLUMN" in refused.err
    document = evaluate(veneer, bare, "--data", dev, "--text", "one", "--pair", "two", "--label", "label")
    assert document["metrics"] == evaluate(veneer, pair_run, "--data", dev)["metrics"]


def test_a_file_without_labels_is_for_predict(veneer: Callable[..., Any], single_run: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.csv").write_text("text\na good day\n", encoding="utf-8")
    result = veneer("evaluate", single_run, "--data", tmp_path / "texts.csv")
    assert result.code == 2
    assert "no column 'label' for the label" in result.err
    assert result.err.endswith("To classify a file without labels: veneer predict DIR --file FILE --out FILE\n")
