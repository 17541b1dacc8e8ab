"""Every command over a run that reads label words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from causal_bases import bilingual_base, toy_pairs
from toy_runs import write_csv

TEMPLATE = "{text}\n{pair}\nAnswer:"
Veneer = Callable[..., Any]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A base and pairs to train on; labels are 0 and 1, as files of pairs often have them."""
    bilingual_base(tmp_path / "base", "llama")
    write_csv(tmp_path / "train.csv", toy_pairs(40, labels=("0", "1")))
    write_csv(tmp_path / "dev.csv", toy_pairs(12, seed=1, labels=("0", "1")))
    return tmp_path


def arguments(files: Path, *more: str, words: str = "{0: 否, 1: 是}", out: str = "run") -> list[str]:
    given = {"--base": "base", "--train": "train.csv", "--dev": "dev.csv", "--out": out}
    flags = [part for flag, name in given.items() for part in (flag, str(files / name))]
    settings = [f"verbaliser.words={words}", "training.epochs=1", "evaluation.bootstrap=0"]
    sets = [part for setting in settings for part in ("--set", setting)]
    return ["train", *flags, "--pair", "pair", "--template", TEMPLATE, "--precision", "fp32", *sets, *more]


def test_a_run_from_training_to_a_merged_checkpoint(files: Path, veneer: Veneer, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = veneer(*arguments(files))
    assert trained.code == 0, trained.err
    assert "label words after a prompt of" in trained.err
    folder = files / "run"
    predicted = veneer("predict", folder, "--text", "good", "--pair", "bad", "--json")
    assert predicted.code == 0, predicted.err
    assert set(json.loads(predicted.out)[0]["scores"]) == {"0", "1"}
    talked = veneer("predict", folder, "--interactive", input="good\nbad\n")
    assert talked.code == 0, talked.err
    for command in (
        ["evaluate", folder, "--data", files / "dev.csv"],
        ["calibrate", folder],
        ["report", folder],
        ["compare", folder, folder / "last"],
        ["compare", folder, "--baselines"],
    ):
        done = veneer(*command)
        assert done.code == 0, (command, done.err, done.out)
    merged = veneer("merge", folder, "--out", files / "merged")
    assert merged.code == 0, merged.err
    assert "AutoModelForCausalLM loads it" in merged.out
    assert (files / "merged" / "label_words.json").is_file()


def test_unequal_words_are_refused_and_length_normalised_takes_them(files: Path, veneer: Veneer) -> None:
    words = "{0: 不相似, 1: 相似}"
    refused = veneer(*arguments(files, words=words))
    assert refused.code == 2
    assert "0: '不相似' is 2 tokens ('不' + '相似')" in refused.err
    assert "'是' / '否'" in refused.err
    assert not (files / "run").exists()
    taken = veneer(*arguments(files, "--length-normalised", words=words))
    assert taken.code == 0, taken.err
    assert json.loads((files / "run" / "veneer.json").read_text(encoding="utf-8"))["verbaliser"]["length_normalised"] is True


def test_inspect_counts_no_head(files: Path, veneer: Veneer) -> None:
    by_words = veneer("inspect", files / "base", "--set", f"verbaliser.template={json.dumps(TEMPLATE)}", "--json")
    by_head = veneer("inspect", files / "base", "--json")
    counts, other = json.loads(by_words.out), json.loads(by_head.out)
    assert counts["trainable"] == counts["lora_parameters"] == other["lora_parameters"] == other["trainable"] - 64
    veneer(*arguments(files))
    assert json.loads(veneer("inspect", files / "run", "--json").out) == counts


def test_what_label_words_do_not_do_is_refused(files: Path, veneer: Veneer) -> None:
    template = f"verbaliser.template={json.dumps(TEMPLATE)}"
    by_method = veneer("inspect", files / "base", "--set", template, "--set", "method=head")
    assert (by_method.code, "label words are read without one" in by_method.err) == (2, True), by_method.err


def test_an_unquoted_yes_is_told(files: Path, veneer: Veneer) -> None:
    """YAML reads it as true."""
    refused = veneer(*arguments(files, words="{0: no, 1: yes}"))
    assert refused.code == 2
    assert "YAML reads an unquoted yes or no as true or false" in " ".join(refused.err.split())


def test_doctor_measures_the_prompt(files: Path, veneer: Veneer) -> None:
    data = ["--data", files / "train.csv", "--pair", "pair", "--base", files / "base", "--precision", "fp32", "--json"]
    template = ["--set", f"verbaliser.template={json.dumps(TEMPLATE)}"]
    plain, prompted = (
        json.loads(veneer("doctor", *data, *more).out) for more in ([], [*template, "--set", "verbaliser.words={0: 否, 1: 是}"])
    )
    lengths = [one["splits"]["train"]["tokens"]["median"] for one in (plain, prompted)]
    assert lengths[1] > lengths[0] + 5  # of the template
    assert prompted["measurement"]["texts_per_second"] > 0
    refused = veneer("doctor", *data, *template, "--set", "verbaliser.words={0: 不相似, 1: 相似}")
    assert refused.code == 1
    (finding,) = [one for one in json.loads(refused.out)["findings"] if one["rule"] == "no-prompt"]
    assert "unequal numbers of tokens" in finding["message"]
