"""Law: an adapter factored again at full rank is that adapter; several combined give the logits of their summed updates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from random_runs import TEXTS, random_run
from veneer import lora
from veneer.adaptation import replace_adapter
from veneer.artifact import load_artifact
from veneer.cli.runs import run_config
from veneer.data import encode
from veneer.inference import compute_logits
from veneer.predictor import load
from veneer.run_info import read_info
from veneer.thinner import combine_runs, make_ensemble

FAMILIES = ["bert", "roberta", "distilbert", "qwen2", "gpt2"]
PLACES = [(family, "auto") for family in FAMILIES] + [("bert", "mean"), ("qwen2", "mean")]
EVERYWHERE = pytest.mark.parametrize(("family", "pooling"), PLACES)

Base = Callable[..., Path]


def logits(folder: Path) -> Tensor:
    return load(folder, precision="fp32").logits(TEXTS)


def combined(folders: Sequence[Path], weights: Sequence[float], out: Path) -> Path:
    return combine_runs(folders, out, weights, run_config(folders[0]), "no texts").folder


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@EVERYWHERE
@pytest.mark.parametrize("scaling", ["standard", "rslora"])
def test_factored_again_at_full_rank_is_the_same(
    family: str, pooling: str, scaling: str, tiny_base: Base, tmp_path: Path
) -> None:
    folder = random_run(tmp_path / "run", tiny_base(family), pooling=pooling, scaling=scaling)
    loaded, adapter = load_artifact(folder, precision="fp32"), lora.read_adapter(folder)
    texts = encode(loaded.tokenizer, TEXTS, None, 24)
    before = compute_logits(loaded.model, texts)
    found = lora.spectra(adapter)
    again = lora.cut_ranks(adapter, found, {name: len(spectrum.values) for name, spectrum in found.items()})
    assert not any(torch.equal(again.tensors[name], adapter.tensors[name]) for name in again.tensors if name.endswith("lora_A"))
    replace_adapter(loaded.model, again)
    close(compute_logits(loaded.model, texts), before)


@EVERYWHERE
def test_one_run_with_weight_one_is_that_run(family: str, pooling: str, tiny_base: Base, tmp_path: Path) -> None:
    folder = random_run(tmp_path / "run", tiny_base(family), pooling=pooling)
    out = combined([folder], [1.0], tmp_path / "out")
    assert torch.equal(logits(out), logits(folder))
    first, second = (load_file(one / "adapter_model.safetensors") for one in (folder, out))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@EVERYWHERE
def test_a_run_with_itself_is_that_run(family: str, pooling: str, tiny_base: Base, tmp_path: Path) -> None:
    folder = random_run(tmp_path / "run", tiny_base(family), pooling=pooling, bias="all")
    out = combined([folder, folder], [0.5, 0.5], tmp_path / "out")
    close(logits(out), logits(folder))
    assert lora.read_adapter(out).settings.rank == 8


@pytest.mark.parametrize("family", FAMILIES)
def test_combined_runs_give_the_logits_of_their_summed_updates(family: str, tiny_base: Base, tmp_path: Path) -> None:
    """Different ranks, scales, layers and orders of labels; the sum is formed as whole matrices, in transformers' own model."""
    base, weights = tiny_base(family), [0.7, 0.2, 0.4]
    folders = [
        random_run(tmp_path / "a", base, seed=1, labels=("x", "y", "z")),
        random_run(tmp_path / "b", base, seed=2, labels=("z", "x", "y"), rank=2, alpha=5.0, scaling="rslora"),
        random_run(tmp_path / "c", base, seed=3, labels=("y", "z", "x"), rank=3, layers=[1]),
    ]
    out = combined(folders, weights, tmp_path / "out")
    loaded = load_artifact(folders[0], precision="fp32")
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3).eval()
    state = model.state_dict()
    whole: dict[str, Tensor] = {}
    for folder, weight in zip(folders, weights, strict=True):
        adapter, labels = lora.read_adapter(folder), read_info(folder).labels
        for name in adapter.settings.layers:
            settings = adapter.settings
            divisor = settings.rank**0.5 if settings.scaling == "rslora" else settings.rank
            update = adapter.tensors[f"{name}.lora_B"] @ adapter.tensors[f"{name}.lora_A"] * (settings.alpha / divisor)
            state[f"{name}.weight"] += weight * (update.T if family == "gpt2" else update)
        for name, tensor in adapter.tensors.items():
            if "lora_" not in name:
                is_last = name.split(".")[-2] in ("classifier", "score", "out_proj")
                in_order = tensor[[labels.index(label) for label in ("x", "y", "z")]] if is_last else tensor
                whole[name] = whole.get(name, 0) + in_order * weight / sum(weights)
    model.load_state_dict(state | whole)
    with torch.no_grad():
        rows = [model(**loaded.tokenizer(text, return_tensors="pt")).logits for text in TEXTS]
    torch.testing.assert_close(logits(out), torch.cat(rows), rtol=1e-4, atol=1e-4)


# transformers deprecates a property that peft still reads.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_cut_and_combined_adapters_load_in_peft(tiny_base: Base, tmp_path: Path) -> None:
    base = tiny_base("roberta")
    folders = [random_run(tmp_path / "a", base, seed=1), random_run(tmp_path / "b", base, seed=2, rank=2, layers=[0])]
    out = combined(folders, [0.5, 0.5], tmp_path / "out")
    loaded, adapter = load_artifact(out, precision="fp32"), lora.read_adapter(out)
    found = lora.spectra(adapter)
    ranks = lora.strongest(found, 10)
    assert 0 in ranks.values()
    assert len(set(ranks.values())) > 1
    cut = lora.cut_ranks(adapter, found, ranks)
    lora.write_adapter(tmp_path, cut.tensors, cut.settings)
    replace_adapter(loaded.model, cut)
    whole = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    theirs = PeftModel.from_pretrained(whole, tmp_path).eval()
    with torch.no_grad():
        rows = [theirs(**loaded.tokenizer(text, return_tensors="pt")).logits for text in TEXTS]
    close(compute_logits(loaded.model, encode(loaded.tokenizer, TEXTS, None, 24)), torch.cat(rows))


def test_an_ensemble_gives_the_mean_of_its_runs_probabilities(tiny_base: Base, tmp_path: Path) -> None:
    folders = [
        random_run(tmp_path / "a", tiny_base(), seed=1, labels=("x", "y", "z")),
        random_run(tmp_path / "b", tiny_base(), seed=2, labels=("z", "x", "y"), bias="all", rank=2),
        random_run(tmp_path / "c", tiny_base(), seed=3, labels=("y", "z", "x"), train_top_layers=1),
    ]
    out = make_ensemble(folders, tmp_path / "out", run_config(folders[0]), "no texts").folder
    found = load(out, precision="fp32").predict(TEXTS)
    single = [load(folder, precision="fp32").predict(TEXTS) for folder in folders]
    for i in range(len(TEXTS)):
        for label in ("x", "y", "z"):
            mean = sum(one[i].scores[label] for one in single) / 3
            assert found[i].scores[label] == pytest.approx(mean, abs=1e-6)
