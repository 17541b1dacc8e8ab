"""Hub addresses, with a stand-in for `datasets.load_dataset`: no hub is reached here."""

from __future__ import annotations

from typing import Any

import datasets
import huggingface_hub
import pytest
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub.errors import RepositoryNotFoundError

from veneer.data import Columns, Reading, read_examples
from veneer.errors import DataError

Calls = list[tuple[tuple[str, ...], dict[str, Any]]]
NOT_THERE = RepositoryNotFoundError.__new__(RepositoryNotFoundError)  # without the answer of an HTTP library, whichever there is
SST2 = Columns("sentence", None, ("label",))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """What was asked of the stand-in, which has glue/sst2, imdb of stanfordnlp, and emotions of an organisation."""
    asked: Calls = []
    binary = datasets.ClassLabel(names=["negative", "positive"])
    features = datasets.Features({"sentence": datasets.Value("string"), "label": binary})
    rows = datasets.Dataset.from_dict({"sentence": ["good", "bad", "new"], "label": [1, 0, -1]}, features=features)
    many = datasets.Features(
        {"text": datasets.Value("string"), "labels": datasets.List(datasets.ClassLabel(names=["joy", "fear"]))}
    )
    lists = datasets.Dataset.from_dict({"text": ["a", "b"], "labels": [[1, 0], []]}, features=many)
    there = {
        ("glue", "sst2", "train"): rows.select(range(2)),
        ("glue", "sst2", "test"): rows,
        ("stanfordnlp/imdb", "train"): rows.select(range(2)),
        ("org/emotions", "raw", "train"): lists,
    }

    def load_dataset(*path: str, **options: Any) -> datasets.Dataset:
        asked.append((path, options))
        found = there.get((*path, options["split"]))
        if found is None and path == ("glue", "sst2"):
            raise ValueError(f"Unknown split \"{options['split']}\". Should be one of ['train', 'test'].")
        if found is None:
            raise DatasetNotFoundError(f"Dataset '{path[0]}' doesn't exist on the Hub or cannot be accessed.")
        return found

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def texts_and_labels(reading: Reading) -> list[tuple[str, tuple[str, ...]]]:
    return [(example.text, example.labels) for example in reading.examples]


def test_name_and_subset_with_class_names(calls: Calls) -> None:
    reading = read_examples("hub:glue/sst2", SST2)
    assert texts_and_labels(reading) == [("good", ("positive",)), ("bad", ("negative",))]
    assert reading.source == "hub:glue/sst2"
    assert calls == [(("glue", "sst2"), {"split": "train"})]  # and nothing that trusts remote code


def test_the_split_of_the_address_goes_before_the_default(calls: Calls) -> None:
    reading = read_examples("hub:glue/sst2:test", SST2, default_split="validation", require_labels=False)
    assert texts_and_labels(reading)[2] == ("new", ())  # -1 is no label
    with pytest.raises(DataError, match='Unknown split "validation"'):
        read_examples("hub:glue/sst2", SST2, default_split="validation")


def test_no_label_is_a_problem_where_labels_are_required(calls: Calls) -> None:
    reading = read_examples("hub:glue/sst2:test", SST2)
    assert [(problem.kind, problem.row) for problem in reading.problems] == [("missing-label", 3)]


def test_two_parts_that_are_no_name_and_subset_are_a_repository(calls: Calls) -> None:
    assert len(read_examples("hub:stanfordnlp/imdb", SST2).examples) == 2
    assert [path for path, _ in calls] == [("stanfordnlp", "imdb"), ("stanfordnlp/imdb",)]


def test_three_parts_are_a_repository_and_its_subset_with_lists_of_classes(calls: Calls) -> None:
    reading = read_examples("hub:org/emotions/raw", Columns("text", None, ("labels",)))
    assert texts_and_labels(reading) == [("a", ("fear", "joy")), ("b", ())]
    assert reading.multi_label
    assert [path for path, _ in calls] == [("org/emotions", "raw")]


def test_what_is_not_found_is_told_for_each_reading(calls: Calls) -> None:
    with pytest.raises(DataError) as error:
        read_examples("hub:no/where:dev", SST2)
    said = str(error.value)
    assert "hub:no/where:dev: split 'dev' cannot be loaded" in said
    assert "as no / where: Dataset 'no' doesn't exist" in said
    assert "as no/where: Dataset 'no/where' doesn't exist" in said
    assert "Fix:" in said


@pytest.mark.parametrize("address", ["hub:", "hub:a/b/c/d", "hub:/b", "hub::train"])
def test_a_malformed_address_is_refused_without_asking(calls: Calls, address: str) -> None:
    with pytest.raises(DataError, match="is no hub address"):
        read_examples(address, SST2)
    assert calls == []


def test_offline_is_an_error_of_ours() -> None:
    with pytest.raises(DataError, match=r"cannot be loaded: there is no connection to the hub.*Fix: connect once"):
        read_examples("hub:a-data-set/that-is-not-in-any-cache", SST2)


@pytest.mark.parametrize(
    ("answer", "offline"),
    [(None, False), (NOT_THERE, False), (TimeoutError("silent"), True)],
)
def test_a_hub_that_does_not_answer_is_asked_once_and_then_the_cache(
    calls: Calls, monkeypatch: pytest.MonkeyPatch, answer: Exception | None, offline: bool
) -> None:
    asked: list[tuple[str, float]] = []
    modes: list[bool] = []
    load_dataset = datasets.load_dataset

    def dataset_info(name: str, timeout: float) -> None:
        asked.append((name, timeout))
        if answer is not None:
            raise answer

    def load(*path: str, **options: Any) -> datasets.Dataset:
        modes.append(datasets.config.HF_HUB_OFFLINE)
        return load_dataset(*path, **options)

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "dataset_info", dataset_info)
    monkeypatch.setattr(datasets, "load_dataset", load)
    assert len(read_examples("hub:stanfordnlp/imdb", SST2).examples) == 2
    assert asked == [("stanfordnlp", 5.0)]
    assert modes == [offline, offline]
    assert datasets.config.HF_HUB_OFFLINE is False
