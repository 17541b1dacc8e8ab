"""`veneer estimate`. That its numbers are right is tests/test_estimate.py."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from causal_bases import bilingual_base
from toy_runs import toy_rows, write_csv
from veneer.config import MethodName
from veneer.lora.dropout import _bank

Command = Callable[..., Any]
Base = Callable[..., Path]

SMALL = ("--batch-size", 4, "--max-length", 16)


def document(veneer: Command, *arguments: object) -> dict[str, Any]:
    result = veneer("estimate", *arguments, "--json")
    assert result.code == 0, result.err
    found: dict[str, Any] = json.loads(result.out)
    return found


def test_it_needs_no_weights(veneer: Command, tiny_base: Base, tmp_path: Path) -> None:
    folder = tmp_path / "bare"
    folder.mkdir()
    shutil.copy(tiny_base("qwen2") / "config.json", folder)
    result = veneer("estimate", folder, *SMALL)
    assert result.code == 0, result.err
    for shown in (
        "On a CPU",
        "On a GPU",
        "full, fp32",
        "checkpointed",
        "activations",
        "most at once",
        "a step of 4 texts of 16 tokens",
    ):
        assert shown in result.out


def test_every_way_is_there_once(veneer: Command, tiny_base: Base) -> None:
    rows = document(veneer, tiny_base(), *SMALL, "--precision", "bf16")["estimates"]
    ways = [(row["device"], row["method"], row["checkpointing"], row["precision"]) for row in rows]
    assert ways == [
        (device, method, checkpointing, precision)
        for device in ("cpu", "cuda")
        for method, precision in (("lora", "bf16"), ("full", "fp32"))
        for checkpointing in (False, True)
    ]
    assert all(row["bytes"]["total"] > row["bytes"]["weights"] for row in rows)


def test_the_kernel_of_a_gpu_keeps_no_attention_weights(veneer: Command, tiny_base: Base) -> None:
    rows = document(
        veneer, tiny_base("qwen2"), "--batch-size", 4, "--max-length", 150, "--precision", "bf16", "--set", "lora.dropout=0"
    )
    cpu, cuda = (next(row for row in rows["estimates"] if row["device"] == device)["bytes"] for device in ("cpu", "cuda"))
    weights = 2 * 4 * 4 * 160 * 160 * 2  # layers, texts, heads, padded length squared, bytes
    assert cpu["activations"] - cuda["activations"] > 0.8 * weights


def test_a_batch_beyond_the_budget_is_cut(veneer: Command, tiny_base: Base) -> None:
    whole = document(veneer, tiny_base(), "--batch-size", 8, "--max-length", 16)
    cut = document(veneer, tiny_base(), "--batch-size", 8, "--max-length", 16, "--set", "training.tokens_per_pass=64")
    assert (whole["texts_a_pass"], cut["texts_a_pass"]) == (8, 4)
    assert cut["estimates"][0]["bytes"]["activations"] < whole["estimates"][0]["bytes"]["activations"]
    assert cut["estimates"][0]["flops_a_step"] == pytest.approx(whole["estimates"][0]["flops_a_step"], rel=0.01)


def test_lora_flags_and_methods_count(veneer: Command, tiny_base: Base) -> None:
    trained = {
        name: document(veneer, tiny_base(), *SMALL, *flags)["estimates"][0]["bytes"]["trained"]
        for name, flags in {
            "lora": (),
            "rank": ("--rank", 16),
            "head": ("--method", "head"),
            "full": ("--method", "full"),
        }.items()
    }
    assert trained["head"] < trained["lora"] < trained["rank"] < trained["full"]


def test_times_at_a_rate_and_by_measuring(veneer: Command, tiny_base: Base) -> None:
    row = document(veneer, tiny_base(), *SMALL, "--tflops", 2)["estimates"][0]
    assert row["seconds_a_step"] == row["flops_a_step"] / 2e12
    measured = document(veneer, tiny_base(), *SMALL, "--measure", "--precision", "fp32")["measured"]
    assert (measured["steps"], measured["texts"], measured["precision"]) == (10, 40, "fp32")
    assert "seconds a step" in veneer("estimate", tiny_base(), *SMALL, "--tflops", 2).out


@pytest.mark.parametrize(("flags", "copies"), [((), (1, 0)), (("--set", "training.ema_decay=0.9"), (2, 1))])
def test_the_best_and_an_average_are_copies(flags: Any, copies: tuple[int, int], veneer: Command, tiny_base: Base) -> None:
    """The best so far is in the processor's memory, wherever the model is; the average is with the model."""
    for row in document(veneer, tiny_base(), *SMALL, *flags)["estimates"]:
        assert row["bytes"]["copies"] == copies[row["device"] == "cuda"] * row["bytes"]["trained"]


def test_two_answers_to_a_text_take_twice_the_activations_and_the_work(veneer: Command, tiny_base: Base) -> None:
    two_answers = ("--set", "training.r_drop=1")
    one, two = (document(veneer, tiny_base(), *SMALL, *flags) for flags in ((), two_answers))
    for single, double in zip(one["estimates"], two["estimates"], strict=True):
        assert double["flops_a_step"] == pytest.approx(2 * single["flops_a_step"], rel=1e-3)
        # but what is kept of the weights themselves, such as the adapter in the base's precision
        assert 1.7 < double["bytes"]["activations"] / single["bytes"]["activations"] < 2
    assert "a step of 4 texts of 16 tokens each, answered twice;" in veneer("estimate", tiny_base(), *SMALL, *two_answers).out
    cut = (*two_answers, "--set", f"training.tokens_per_pass={4 * one['max_length']}")
    assert (one["answers"], two["answers"]) == (1, 2)
    assert document(veneer, tiny_base(), *SMALL, *cut)["texts_a_pass"] == 2


def test_every_method_can_be_asked_for(veneer: Command, tiny_base: Base) -> None:
    trained = {}
    for method in get_args(MethodName):
        rows = document(veneer, tiny_base(), *SMALL, "--method", method)["estimates"]
        assert {row["method"] for row in rows} == {method, "full"}
        trained[method] = rows[0]["bytes"]["trained"]
    assert len(set(trained.values())) == len(trained)
    assert max(trained, key=lambda method: trained[method]) == "full"


def test_fewer_bits_and_the_optimizers_states(veneer: Command, tiny_base: Base) -> None:
    flags = ("--base-precision", "nf4", "--rank", 64, "--set", "training.optimizer=adamw_8bit")
    rows = document(veneer, tiny_base("qwen2"), *SMALL, *flags)["estimates"]
    assert {(row["method"], row["base_precision"]) for row in rows} == {("lora", "nf4"), ("full", "auto")}
    assert rows[0]["bytes"]["optimizer"] < 2 * rows[0]["bytes"]["trained"]
    assert "lora, fp32, nf4" in veneer("estimate", tiny_base("qwen2"), *SMALL, *flags, "--precision", "fp32").out
    paged = document(veneer, tiny_base(), *SMALL, "--set", "training.optimizer=paged_adamw_8bit")["estimates"]
    assert {row["device"] for row in paged} == {"cuda"}


def test_by_label_words_there_is_no_head(veneer: Command, tiny_causal: Base) -> None:
    headed, words = (
        document(veneer, tiny_causal(), *SMALL, *flags)["estimates"][0]["bytes"]["trained"]
        for flags in ((), ("--template", "{text} ="))
    )
    assert headed - words == 2 * 32 * 4


def test_settings_of_lora_are_not_asked_of_full(veneer: Command, tiny_base: Base) -> None:
    plain, dora = (document(veneer, tiny_base(), *SMALL, *flags)["estimates"] for flags in ((), ("--set", "lora.dora=true")))
    assert dora[0]["bytes"]["trained"] > plain[0]["bytes"]["trained"]
    assert dora[2] == plain[2]


@pytest.mark.parametrize(
    ("flags", "shown"),
    [
        (["--method", "dora"], "method: input should be 'lora', 'adalora'"),
        (["--tflops", "0"], "--tflops is a number above 0"),
        (["--template", "{text} =", "--length-normalised"], "verbaliser.length_normalised: how often a text is read"),
        (["--template", "{text} =", "--measure"], "--measure: a template is answered by the labels' words after real texts"),
        (["--template", "Good?"], "verbaliser.template must hold {text} once, and no {pair}; it holds neither"),
        (["--template", "{pair} ="], "verbaliser.template must hold {text} and {pair} once each"),
        (["--template", "{text} =", "--set", "data.pair=second"], "must hold {text} and {pair} once each"),
        (["--template", "{text}"], "verbaliser.template must end with words of its own"),
    ],
)
def test_what_cannot_be_asked(veneer: Command, tiny_base: Base, flags: list[str], shown: str) -> None:
    result = veneer("estimate", tiny_base(), *SMALL, *flags)
    assert (result.code, shown in " ".join(result.err.split())) == (2, True), result.err


def test_a_template_of_pairs_or_a_chat_is_not_refused(veneer: Command, tiny_causal: Base) -> None:
    for template in ("{text} {pair} =", "chat"):
        assert document(veneer, tiny_causal(), *SMALL, "--template", template)["estimates"]


def test_steps_by_label_words_are_measured_as_the_refusal_says(veneer: Command, tmp_path: Path) -> None:
    base = bilingual_base(tmp_path / "base")
    refused = " ".join(veneer("estimate", base, *SMALL, "--template", "{text} =", "--measure").err.split())
    assert f"Fix: veneer doctor --data FILE --base {base} --set 'verbaliser.template=\"…\"'" in refused
    data = write_csv(tmp_path / "train.csv", [row | {"label": {"good": "是", "bad": "否"}[row["label"]]} for row in toy_rows(24)])
    flags = ("--base", base, "--batch-size", 4, "--precision", "fp32", "--set", 'verbaliser.template="{text} ="', "--json")
    told = json.loads(veneer("doctor", "--data", data, *flags).out)
    assert told["measurement"]["steps"] == 10
    assert not [one for one in told["findings"] if one["severity"] == "error"]


def test_a_family_that_is_padded_has_an_estimate(veneer: Command, tiny_base: Base) -> None:
    rows = document(veneer, tiny_base("deberta-v2"), *SMALL, "--precision", "fp32")["estimates"]
    assert [row["checkpointing"] for row in rows] == [False, True] * 4


def test_no_checkpointing_is_shown_where_the_code_cannot_do_it(veneer: Command, tiny_base: Base) -> None:
    flags = (tiny_base("mpnet"), *SMALL, "--precision", "fp32")
    rows = document(veneer, *flags)["estimates"]
    ways = [(row["device"], row["method"], row["checkpointing"]) for row in rows]
    assert ways == [(device, method, False) for device in ("cpu", "cuda") for method in ("lora", "full")]
    said = "nothing is shown with checkpointing: the code of this base cannot do it"
    assert said in veneer("estimate", *flags).out
    assert said not in veneer("estimate", tiny_base(), *SMALL).out


@pytest.mark.parametrize("flags", [(), ("--set", "training.optimizer=paged_adamw_8bit")])
def test_a_family_whose_code_looks_at_numbers_is_refused(veneer: Command, tiny_base: Base, flags: Any) -> None:
    """On a GPU, of which alone paged moments are, XLNet drops positions that it makes on the processor: of all bits 0."""
    _bank.cache_clear()
    result = veneer("estimate", tiny_base("xlnet"), *SMALL, "--precision", "fp32", *flags)
    assert (result.code, "the code of xlnet looks at them" in result.err) == (2, True), result.err
