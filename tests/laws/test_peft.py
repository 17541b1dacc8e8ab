"""Law: an adapter of ours in PEFT, and PEFT's in ours, give the same tensors and the same logits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForSequenceClassification

from veneer.lora import (
    AdapterFile,
    adapter_settings,
    apply_adapter,
    apply_lora,
    count_parameters,
    default_targets,
    embedding_modules,
    lora_layers,
    lora_state_dict,
    mark_only_lora_as_trainable,
    read_adapter,
    start_dora,
    start_pissa,
    top_layers,
    unfreeze,
    write_adapter,
)

FAMILIES = ["bert", "roberta", "distilbert", "modernbert", "qwen2", "llama", "gpt2"]
IDS = torch.tensor([[5, 9, 11, 12, 30, 41], [7, 8, 60, 61, 13, 14]])

# transformers deprecates a property that peft still reads.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

Base = Callable[..., Path]
Start = Callable[[nn.Module], None]


def load(folder: Path, seed: int) -> tuple[nn.Module, tuple[str, ...]]:
    """A classifier over the base in `folder`, and the modules that the base does not supply, random by `seed`."""
    torch.manual_seed(seed)
    options = {"num_labels": 3, "pad_token_id": 0, "output_loading_info": True}
    model, info = AutoModelForSequenceClassification.from_pretrained(folder, **options)
    return model.eval(), tuple(sorted({key.rpartition(".")[0] for key in info["missing_keys"]}))


def scatter(model: nn.Module) -> None:
    """Give every trained parameter values far from its initial ones."""
    torch.manual_seed(7)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.2)


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def ours(
    folder: Path, family: str, *, bias: str = "none", full: tuple[str, ...] = (), start: Start | None = None, **lora: object
) -> nn.Module:
    model, missing = load(folder, seed=1)
    modules = (*missing, *full)
    settings = {"rank": 4, "alpha": 6.0} | lora
    apply_lora(model, default_targets(family), exclude=modules, **settings)  # type: ignore[arg-type]
    if start is not None:
        start(model)
    mark_only_lora_as_trainable(model, bias)  # type: ignore[arg-type]
    unfreeze(model, modules)
    scatter(model)
    return model


def save(model: nn.Module, folder: Path, bias: str = "none") -> AdapterFile:
    settings = adapter_settings(model, bias=bias, base=None, task_type="SEQ_CLS")  # type: ignore[arg-type]
    tensors = lora_state_dict(model, bias, settings.saved_modules)  # type: ignore[arg-type]
    write_adapter(folder, tensors, settings)
    return AdapterFile(settings, tensors)


def assert_same_in_peft(model: nn.Module, base: Path, folder: Path) -> None:
    """PEFT, over a fresh load of the base, gives the logits of `model`, and would save the tensors of `folder`."""
    loaded = PeftModel.from_pretrained(load(base, seed=2)[0], folder).eval()
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-5, atol=1e-6)
    loaded.save_pretrained(folder / "again")
    first, second = load_file(folder / "adapter_model.safetensors"), load_file(folder / "again" / "adapter_model.safetensors")
    copies = {key for key in second if ".modules_to_save." in key or ".original_module." in key}  # of bias="all"
    assert first.keys() == second.keys() - copies
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("family", FAMILIES)
def test_our_adapter_in_peft(family: str, tiny_base: Base, tmp_path: Path) -> None:
    model = ours(tiny_base(family), family)
    save(model, tmp_path)
    assert_same_in_peft(model, tiny_base(family), tmp_path)


@pytest.mark.parametrize("start", [start_dora, start_pissa])
@pytest.mark.parametrize("family", ["bert", "gpt2", "qwen2"])
def test_our_dora_and_pissa_in_peft(family: str, start: Start, tiny_base: Base, tmp_path: Path) -> None:
    """PiSSA's over the base as it is, which is where PEFT loads it."""
    model = ours(tiny_base(family), family, start=start, scaling="standard" if family == "bert" else "rslora")
    save(model, tmp_path)
    assert_same_in_peft(model, tiny_base(family), tmp_path)
    again, _ = load(tiny_base(family), seed=3)
    apply_adapter(again, read_adapter(tmp_path))
    torch.testing.assert_close(logits(again), logits(model), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", ["bert", "gpt2", "qwen2"])
def test_peft_dora_in_ours(family: str, tiny_base: Base, tmp_path: Path) -> None:
    base, missing = load(tiny_base(family), seed=1)
    heads = [name for name in missing if not name.startswith(("classifier", "score"))]
    config = LoraConfig(
        task_type="SEQ_CLS",
        r=4,
        use_dora=True,
        target_modules=list(default_targets(family)),
        modules_to_save=heads,
        fan_in_fan_out=family == "gpt2",
    )
    theirs = get_peft_model(base, config)
    scatter(theirs)
    theirs.eval().save_pretrained(tmp_path)
    model, _ = load(tiny_base(family), seed=2)
    apply_adapter(model, read_adapter(tmp_path))
    torch.testing.assert_close(logits(model), logits(theirs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_peft_adapter_in_ours(family: str, tiny_base: Base, tmp_path: Path) -> None:
    base, missing = load(tiny_base(family), seed=1)
    config = LoraConfig(
        task_type="SEQ_CLS",
        r=4,
        lora_alpha=6,
        lora_dropout=0.1,
        target_modules=list(default_targets(family)),
        modules_to_save=[name for name in missing if not name.startswith(("classifier", "score"))],
        fan_in_fan_out=family == "gpt2",
    )
    theirs = get_peft_model(base, config)
    scatter(theirs)
    theirs.eval().save_pretrained(tmp_path)

    model, _ = load(tiny_base(family), seed=2)
    apply_adapter(model, read_adapter(tmp_path))
    torch.testing.assert_close(logits(model), logits(theirs), rtol=1e-5, atol=1e-6)
    counts = count_parameters(model)
    assert (counts.peft_trainable, counts.peft_total) == theirs.get_nb_trainable_parameters()
    again = tmp_path / "again"
    again.mkdir()
    save(model, again)
    first, second = load_file(tmp_path / "adapter_model.safetensors"), load_file(again / "adapter_model.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("bias", ["all", "lora_only"])
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_trained_biases_both_ways(family: str, bias: str, tiny_base: Base, tmp_path: Path) -> None:
    model = ours(tiny_base(family), family, bias=bias)
    written = save(model, tmp_path, bias)
    assert_same_in_peft(model, tiny_base(family), tmp_path)
    reloaded, _ = load(tiny_base(family), seed=3)
    adapter = read_adapter(tmp_path / "again")
    assert set(adapter.settings.layers) == set(written.settings.layers)
    assert adapter.settings.saved_modules == written.settings.saved_modules
    apply_adapter(reloaded, adapter)
    assert torch.equal(logits(reloaded), logits(model))


@pytest.mark.parametrize("family", ["bert", "qwen2", "gpt2"])
def test_scaling_and_chosen_layers(family: str, tiny_base: Base, tmp_path: Path) -> None:
    model = ours(tiny_base(family), family, scaling="rslora", alpha=2.5, layers=[1])
    assert all(".1." in name for name in lora_layers(model))
    save(model, tmp_path)
    assert_same_in_peft(model, tiny_base(family), tmp_path)


@pytest.mark.parametrize("family", ["bert", "qwen2", "gpt2"])
def test_ranks_and_alphas_of_single_layers(family: str, tiny_base: Base, tmp_path: Path) -> None:
    names = list(lora_layers(ours(tiny_base(family), family)))
    ranks, alphas = {names[0]: 1, names[-1]: 6}, {names[-1]: 2.5, names[1]: 7.0}
    model = ours(tiny_base(family), family, ranks=ranks, alphas=alphas)
    save(model, tmp_path)
    assert_same_in_peft(model, tiny_base(family), tmp_path)
    reloaded, _ = load(tiny_base(family), seed=3)
    apply_adapter(reloaded, read_adapter(tmp_path / "again"))
    assert torch.equal(logits(reloaded), logits(model))


def test_patterns_by_name_mean_what_they_mean_in_peft(tiny_base: Base, tmp_path: Path) -> None:
    base, _ = load(tiny_base("bert"), seed=1)
    patterns = {
        "rank_pattern": {"query": 2, "1.output.dense": 5},
        "alpha_pattern": {"attention.output.dense": 9, "^bert.encoder.layer.0.output.dense": 3},
    }
    config = LoraConfig(task_type="SEQ_CLS", r=4, lora_alpha=6, target_modules=list(default_targets("bert")), **patterns)
    theirs = get_peft_model(base, config)
    scatter(theirs)
    theirs.eval().save_pretrained(tmp_path)
    model, _ = load(tiny_base("bert"), seed=2)
    apply_adapter(model, read_adapter(tmp_path))
    torch.testing.assert_close(logits(model), logits(theirs), rtol=1e-5, atol=1e-6)
    assert {layer.rank for layer in lora_layers(model).values()} == {2, 4, 5}


@pytest.mark.parametrize("family", ["bert", "distilbert", "gpt2", "qwen2"])
def test_top_layers_and_embeddings_trained_in_full(family: str, tiny_base: Base, tmp_path: Path) -> None:
    plain, _ = load(tiny_base(family), seed=1)
    model = ours(tiny_base(family), family, full=(*top_layers(plain, 1), *embedding_modules(plain)))
    save(model, tmp_path)
    assert_same_in_peft(model, tiny_base(family), tmp_path)


def test_a_pooler_the_base_lacks_is_saved_and_restored(tiny_base: Base, tmp_path: Path) -> None:
    encoder = AutoModel.from_pretrained(tiny_base("bert"), add_pooling_layer=False)
    base = tmp_path / "encoder"
    encoder.save_pretrained(base)
    model = ours(base, "bert")
    written = save(model, tmp_path)
    assert written.settings.saved_modules == ("bert.pooler", "classifier")
    assert_same_in_peft(model, base, tmp_path)
    reloaded, _ = load(base, seed=2)
    apply_adapter(reloaded, read_adapter(tmp_path))
    assert torch.equal(logits(reloaded), logits(model))


def test_a_frozen_module_that_peft_takes_for_the_head_is_saved_too(tiny_base: Base, tmp_path: Path) -> None:
    torch.manual_seed(1)
    whole, _ = load(tiny_base("distilbert"), seed=1)
    base = tmp_path / "whole"
    whole.save_pretrained(base)  # with its pre_classifier
    model, missing = load(base, seed=1)
    assert missing == ()
    apply_lora(model, default_targets("distilbert"), rank=4, alpha=6.0)
    mark_only_lora_as_trainable(model)
    unfreeze(model, ["classifier"])
    scatter(model)
    written = save(model, tmp_path)
    assert written.settings.saved_modules == ("classifier", "pre_classifier")
    assert_same_in_peft(model, base, tmp_path)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_feature_extraction_without_a_head(family: str, tiny_base: Base, tmp_path: Path) -> None:
    def hidden(model: nn.Module) -> Tensor:
        with torch.no_grad():
            return model(input_ids=IDS).last_hidden_state

    model = AutoModel.from_pretrained(tiny_base(family)).eval()
    apply_lora(model, default_targets(family), rank=2, alpha=4.0)
    mark_only_lora_as_trainable(model)
    scatter(model)
    settings = adapter_settings(model, bias="none", base="some/base", task_type="FEATURE_EXTRACTION")
    write_adapter(tmp_path, lora_state_dict(model), settings)
    theirs = PeftModel.from_pretrained(AutoModel.from_pretrained(tiny_base(family)), tmp_path).eval()
    assert theirs.peft_config["default"].base_model_name_or_path == "some/base"
    torch.testing.assert_close(hidden(theirs), hidden(model), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pattern", ["all-linear", r".*\.layer\.\d+\..*(query|dense)", ["query", "output.dense"]])
def test_targets_mean_what_they_mean_in_peft(pattern: str | list[str], tiny_base: Base) -> None:
    model, missing = load(tiny_base("bert"), seed=1)
    names = apply_lora(model, pattern, rank=2, alpha=2.0, exclude=missing)
    theirs = get_peft_model(load(tiny_base("bert"), seed=1)[0], LoraConfig(task_type="SEQ_CLS", r=2, target_modules=pattern))
    assert set(names) == set(theirs.targeted_module_names)
