"""Runs that read label words: settings that go together, what the log shows, and that they learn as a head does."""

from __future__ import annotations

import ast
import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from causal_bases import bilingual_base, toy_marks, toy_pairs
from toy_runs import run, toy_config, write_csv
from veneer.artifact import load_artifact
from veneer.config_file import load_config
from veneer.errors import BaseError, ConfigError
from veneer.export.merged import merge_run
from veneer.inference import compute_logits
from veneer.predictor import load

Base = Callable[..., Path]
Make = Callable[..., Any]
WORDS = {"different": "否", "same": "是"}
TEMPLATE = "{text}\n{pair}\nAnswer:"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bilingual_base(tmp_path_factory.mktemp("causal") / "llama", "llama")


@pytest.fixture
def make(tmp_path: Path, llama: Path) -> Make:
    """`make(verbaliser__template=…)` is the configuration of a short run over pairs in `tmp_path`."""

    def config(*, rows: int = 40, share: float = 0.5, base: Path = llama, **changes: Any) -> Any:
        if not (tmp_path / "train.csv").exists():
            write_csv(tmp_path / "train.csv", toy_pairs(rows, share=share))
            write_csv(tmp_path / "dev.csv", toy_pairs(100 if rows > 100 else 12, seed=1))
        plain = {"data__pair": "pair", "data__max_length": 80, "training__epochs": 1}
        plain |= {"evaluation__calibrate": False, "evaluation__baseline": False}
        return toy_config(tmp_path, base, **plain | changes)

    return config


def words(**changes: Any) -> dict[str, Any]:
    return {"verbaliser__template": TEMPLATE, "verbaliser__words": WORDS} | changes


LEARNING = {
    "rows": 1000,
    "lora__rank": 16,
    "lora__dropout": 0.0,
    "training__batch_size": 16,
    "training__epochs": 4,
    "training__learning_rate": 1e-2,
    "evaluation__metric": "accuracy",
}


@pytest.mark.parametrize("family", ["qwen2", "llama"])
@pytest.mark.parametrize("way", ["head", "label words", "several tokens"])
def test_a_relation_of_two_texts_is_learned(family: str, way: str, make: Make, tmp_path: Path) -> None:
    """Whether both texts say good, or both bad: neither text alone tells."""
    changes: dict[str, Any] = {"head": {}, "label words": words()}.get(way) or {}
    if way == "several tokens":
        changes = words(verbaliser__words={"different": "不相似", "same": "相似"}, verbaliser__length_normalised=True)
    base = bilingual_base(tmp_path / "base", family)
    result = run(make(base=base, **LEARNING, **changes))
    assert result.evaluations["dev"].metrics["accuracy"].value > 0.95
    again = load(result.folder).predict(["a good film", "a good film"], ["was it good", "bad work"])
    assert [one.labels for one in again] == [("same",), ("different",)]


def test_weights_early_stopping_checkpointing_and_accumulation_go_with_label_words(make: Make, tmp_path: Path) -> None:
    given = {"class_weights": "balanced", "gradient_checkpointing": True, "gradient_accumulation": 2}
    given |= {"patience": 1, "evaluate_every": 1, "learning_rate": 1e-7, "tokens_per_pass": 60}
    config = make(share=0.2, **words(), **{f"training__{name}": value for name, value in given.items()})
    result = run(config)
    assert result.report["training"]["steps"] == 2  # the first score stays the best
    moved = load_file(result.folder / "last" / "adapter_model.safetensors")
    assert all(bool(tensor.any()) for name, tensor in moved.items() if "lora_B" in name)
    assert not any("lm_head" in name or "embed" in name for name in moved)
    plain = run(config.model_copy(update={"training": config.training.model_copy(update={"class_weights": None}), "out": None}))
    losses = [[row["loss"] for row in one.report["history"] if row["kind"] == "step"] for one in (result, plain)]
    assert losses[0][0] != pytest.approx(losses[1][0], rel=1e-3)


@pytest.mark.parametrize("way", ["head", "label words"])
def test_with_checkpointing_the_adapter_learns_as_without(way: str, make: Make) -> None:
    tensors = []
    for checkpointing in (False, True):
        changes = {"training__gradient_checkpointing": checkpointing, "out": None, "lora__dropout": 0.0}
        folder = run(make(**(words() if way == "label words" else {}), **changes)).folder
        tensors.append(load_file(folder / "adapter_model.safetensors"))
    assert all(bool(tensor.any()) for name, tensor in tensors[1].items() if "lora_B" in name)
    for name, tensor in tensors[0].items():
        torch.testing.assert_close(tensors[1][name], tensor, rtol=1e-4, atol=1e-6, msg=lambda text, n=name: n + text)


def test_the_run_folder_says_how_to_read_it(make: Make, tmp_path: Path) -> None:
    folder = run(make(**words())).folder
    info = json.loads((folder / "veneer.json").read_text(encoding="utf-8"))
    assert info["verbaliser"] == {"template": TEMPLATE, "words": ["否", "是"], "length_normalised": False}
    assert not (folder / "head.safetensors").exists()
    assert "lm_head" not in str(load_file(folder / "adapter_model.safetensors").keys())
    log = (folder / "train.log").read_text(encoding="utf-8")
    first = toy_pairs(1)[0]
    assert f"<s>{first['text']}\n{first['pair']}\nAnswer:\n" in log
    assert log.count("Answer:") == 1
    tokenizer = load_artifact(folder).tokenizer
    assert f"then different: '否' ({tokenizer('否').input_ids[1]}); same: '是' (" in log
    assert "1 token" not in log


def test_a_chat_template_is_stored_as_it_came_to_be(make: Make) -> None:
    config = make(verbaliser__template="chat", verbaliser__words=WORDS)
    folder = run(config).folder
    question = "First text: {text}\nSecond text: {pair}\n\nAnswer with one of: 否, 是"
    rendered = f"<s><|user|>\n{question}<|end|>\n<|assistant|>\n"
    assert load(folder).info.verbaliser == {"template": rendered, "words": ["否", "是"], "length_normalised": False}
    kept = load_config(folder / "config.yaml")
    assert (kept.verbaliser.template, kept.verbaliser.instruction, kept.verbaliser.words) == (rendered, None, WORDS)
    again = run(kept.model_copy(update={"out": None}))
    assert torch.equal(load(folder).logits(["good"], ["bad"]), load(again.folder).logits(["good"], ["bad"]))


def test_the_instruction_is_what_the_user_says(make: Make) -> None:
    given = {"verbaliser__template": "chat", "verbaliser__instruction": "{pair} and {text}?", "verbaliser__words": WORDS}
    template = load(run(make(**given)).folder).info.verbaliser["template"]  # type: ignore[index]
    assert template == "<s><|user|>\n{pair} and {text}?<|end|>\n<|assistant|>\n"


def test_the_labels_names_are_their_words_where_none_are_given(make: Make, tmp_path: Path) -> None:
    for name, count in (("train", 20), ("dev", 6)):
        write_csv(tmp_path / f"{name}.csv", toy_pairs(count, labels=("no", "yes")))
    info = load(run(make(verbaliser__template=f"{TEMPLATE} ")).folder).info
    assert info.verbaliser == {"template": f"{TEMPLATE} ", "words": ["no", "yes"], "length_normalised": False}


def test_what_the_diagnosis_calls_cut_was_cut(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With words of several tokens a text's ids are all its readings."""
    from veneer.training import finish

    seen = []
    diagnose = finish.diagnose
    monkeypatch.setattr(finish, "diagnose", lambda evidence: seen.append(evidence) or diagnose(evidence))
    make()
    rows = toy_pairs(12, seed=1)
    rows[3]["text"] = "day " * 100
    write_csv(tmp_path / "dev.csv", rows)
    several = {"different": "不相似", "same": "好相似"}
    run(make(**words(verbaliser__words=several), verbaliser__length_normalised=True))
    (evidence,) = seen
    assert evidence.cut.tolist() == [i == 3 for i in range(12)]
    assert evidence.lengths[3] == 80
    assert max(length for i, length in enumerate(evidence.lengths) if i != 3) < 40


@pytest.mark.parametrize("changes", [{"lora__init": "pissa"}, {"lora__dora": True}, {"lora__bias": "all"}])
def test_other_kinds_of_lora_are_saved_and_read_by_label_words(changes: dict[str, Any], make: Make) -> None:
    folder = run(make(**words(), **changes)).folder  # training compares what it reads with what it has
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert (settings["task_type"], settings.get("use_dora", False)) == ("CAUSAL_LM", changes.get("lora__dora", False))


def refused(config: Any) -> str:
    with pytest.raises(ConfigError) as error:
        run(config)
    assert not Path(config.out).exists()
    return str(error.value)


def test_settings_that_do_not_go_together_are_refused(make: Make, tmp_path: Path) -> None:
    assert "verbaliser.template is missing" in refused(make(verbaliser__words=WORDS))
    assert "verbaliser.template is missing" in refused(make(verbaliser__length_normalised=True))
    assert "read at the last token, not by mean. Fix: --pooling auto" in refused(make(**words(), pooling="mean"))
    assert "label words are read without one. Fix: another method, such as lora" in refused(make(**words(), method="head"))
    assert "goes with verbaliser.template: chat alone" in refused(make(**words(), verbaliser__instruction="{text}?"))
    said = refused(make(**words(verbaliser__words={"same": "是"})))
    assert "must give every label a word: different, same; given: same" in said
    said = refused(make(**words(verbaliser__words={"different": "不相似", "same": "相似"})))
    assert "different: '不相似' is 2 tokens" in said


def printed(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """What the Python of a README prints in its folder."""
    (folder.parent / "code.py").write_text(code, encoding="utf-8")
    monkeypatch.chdir(folder)
    capsys.readouterr()
    runpy.run_path(str(folder.parent / "code.py"))
    return ast.literal_eval(capsys.readouterr().out)


def python_of(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8").split("```python")[1].split("```")[0]


def test_the_readme_fills_in_texts_that_hold_each_others_places(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run(make(**words())).folder
    merge_run(folder, tmp_path / "merged")
    code = python_of(tmp_path / "merged").replace('"a text"', '"good {pair}"').replace('"its second text"', '"bad {text}"')
    (expected,) = load(folder, precision="fp32").predict(["good {pair}"], ["bad {text}"])
    assert printed(code, tmp_path / "merged", monkeypatch, capsys) == pytest.approx(expected.scores, abs=1e-4)


MARKS = {"verbaliser__words": {"bad": "不", "film": "是", "good": "好"}, "verbaliser__none": "否"}


def marks(folder: Path, base: Path, rows: int = 40, **changes: Any) -> Any:
    """The configuration of a short run over texts with any number of labels."""
    write_csv(folder / "train.csv", toy_marks(rows))
    write_csv(folder / "dev.csv", toy_marks(100 if rows > 100 else 12, seed=1))
    plain = {"data__label": ["bad", "film", "good"], "verbaliser__template": "{text}\nAnswer:", "data__max_length": 60}
    plain |= {"evaluation__baseline": False, "training__epochs": 1}
    return toy_config(folder, base, **plain | MARKS | changes)


@pytest.mark.parametrize("several", [False, True])
def test_any_number_of_labels_is_learned_against_the_word_for_none(
    several: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changes: dict[str, Any] = {**LEARNING, "rows": 400, "evaluation__metric": "subset_accuracy"}
    if several:
        changes["verbaliser__words"] = {"bad": "不", "film": "相似", "good": "不相似"}
        changes["verbaliser__length_normalised"] = True
    result = run(marks(tmp_path, bilingual_base(tmp_path / "base"), **changes))
    assert result.evaluations["dev"].metrics["subset_accuracy"].value > 0.95
    predictor = load(result.folder)
    assert predictor.info.verbaliser is not None
    assert predictor.info.verbaliser["none"] == "否"
    texts = ["the bad film", "it was a day", "good day", "film good bad"]
    assert [set(one.labels) for one in predictor.predict(texts)] == [{"bad", "film"}, set(), {"good"}, {"bad", "film", "good"}]
    report = merge_run(result.folder, tmp_path / "merged")
    assert report.flips == 0
    (expected,) = load(result.folder, precision="fp32").predict(["a text"])
    told = printed(python_of(tmp_path / "merged"), tmp_path / "merged", monkeypatch, capsys)
    assert told == pytest.approx(expected.scores, abs=1e-4)


def test_a_logit_is_how_far_a_word_lies_above_that_for_none(tmp_path: Path, llama: Path) -> None:
    result = run(marks(tmp_path, llama))
    assert "; none of them: '否' (" in (result.folder / "train.log").read_text(encoding="utf-8")
    loaded = load_artifact(result.folder, precision="fp32")
    assert load_config(result.folder / "config.yaml").verbaliser.none == "否"
    texts = loaded.encode(["good"], None)
    with torch.no_grad():
        hidden = loaded.model.pooled(loaded.model.batch(texts, [0]))[0]
    scores = loaded.model.network.get_output_embeddings().weight @ hidden  # type: ignore[operator]
    tokens = [loaded.tokenizer(word, add_special_tokens=False).input_ids[0] for word in ("不", "是", "好", "否")]
    expected = scores[tokens[:3]] - scores[tokens[3]]
    torch.testing.assert_close(compute_logits(loaded.model, texts)[0], expected, rtol=1e-5, atol=1e-5)


def test_any_number_of_labels_wants_a_word_for_none_and_one_label_does_not(make: Make, tmp_path: Path, llama: Path) -> None:
    assert "verbaliser.none: these texts have one label each" in refused(make(**words(verbaliser__none="不")))
    said = refused(marks(tmp_path, llama, verbaliser__none=None))
    assert "verbaliser.none is missing" in said
    assert "Fix: --set verbaliser.none=none" in said
    said = refused(marks(tmp_path, llama, verbaliser__none="不相似"))
    assert "unequal numbers of tokens" in said
    assert "verbaliser.none: '不相似' is 2 tokens" in said
    assert "have the same token" in refused(marks(tmp_path, llama, verbaliser__none="好"))


def test_a_base_that_is_not_causal_is_refused(make: Make, tiny_base: Base) -> None:
    config = make(base=tiny_base("bert"), **words(verbaliser__words={"different": "good", "same": "bad"}))
    with pytest.raises(BaseError, match="bert does not answer a prompt with a label word"):
        run(config)


def test_an_empty_section_is_a_head(make: Make) -> None:
    config = load_config(None, {"verbaliser": None})
    assert config == load_config(None, {})


def test_a_bf16_base_gives_the_logits_it_was_scored_with(make: Make) -> None:
    folder = run(make(**words(), training__precision="bf16")).folder
    loaded = load_artifact(folder, precision="bf16")
    assert loaded.model.network.get_output_embeddings().weight.dtype == torch.bfloat16  # type: ignore[operator]
    logits = compute_logits(loaded.model, loaded.encode(["good"], ["bad"]))
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, logits.bfloat16().float())
