"""Adapter files as such: what is read, what is refused. That PEFT agrees is a law (tests/laws/test_peft.py)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForSequenceClassification, BertConfig

from veneer.errors import LoraError
from veneer.lora import (
    AdapterFile,
    adapter_settings,
    apply_adapter,
    apply_lora,
    combine_adapters,
    cut_ranks,
    lora_state_dict,
    mark_only_lora_as_trainable,
    read_adapter,
    start_dora,
    unfreeze,
    write_adapter,
)
from veneer.lora.peft_fields import HARMLESS_FIELDS, HONOURED_FIELDS, REFUSED_FIELDS
from veneer.lora.peft_format import CONFIG_FILE, PICKLE_FILE, TENSOR_FILE

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 20}
QUERY = "base_model.model.bert.encoder.layer.0.attention.self.query"


def bert() -> nn.Module:
    return AutoModelForSequenceClassification.from_config(BertConfig(**SMALL))


def adapted() -> nn.Module:
    model = bert()
    apply_lora(model, ["query", "value"], rank=2, alpha=4.0)
    mark_only_lora_as_trainable(model)
    unfreeze(model, ["classifier"])
    return model


def save(model: nn.Module, folder: Path) -> None:
    settings = adapter_settings(model, bias="none", base="somewhere/bert", task_type="SEQ_CLS")
    write_adapter(folder, lora_state_dict(model, modules=settings.saved_modules), settings)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save(adapted(), tmp_path)
    return tmp_path


def change(folder: Path, **fields: Any) -> None:
    path = folder / CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def change_tensors(folder: Path, edit: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    save_file(edit(load_file(folder / TENSOR_FILE)), folder / TENSOR_FILE)


def test_the_configuration_says_what_the_adapter_is(folder: Path) -> None:
    assert json.loads((folder / CONFIG_FILE).read_text()) == {
        "base_model_name_or_path": "somewhere/bert",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": 4,
        "lora_dropout": 0.0,
        "modules_to_save": ["classifier"],
        "peft_type": "LORA",
        "r": 2,
        "target_modules": [f"bert.encoder.layer.{i}.attention.self.{name}" for i in (0, 1) for name in ("query", "value")],
        "task_type": "SEQ_CLS",
        "use_rslora": False,
    }
    assert set(load_file(folder / TENSOR_FILE)) >= {f"{QUERY}.lora_A.weight", "base_model.model.classifier.bias"}


def test_every_field_of_peft_is_classified_once() -> None:
    fields = {field.name for field in dataclasses.fields(LoraConfig)} | set(LoraConfig().to_dict())
    kinds = [HONOURED_FIELDS, HARMLESS_FIELDS.keys(), REFUSED_FIELDS.keys()]
    assert fields - set().union(*kinds) == set()
    assert sum(map(len, kinds)) == len(set().union(*kinds))


def test_the_defaults_of_peft_are_read(folder: Path) -> None:
    """Whatever PEFT writes for a plain adapter must not be taken for something unsupported."""
    plain = LoraConfig(r=2, lora_alpha=4).to_dict()
    ours = json.loads((folder / CONFIG_FILE).read_text())
    change(folder, **json.loads(json.dumps(plain | ours, default=str)))
    assert read_adapter(folder).settings.rank == 2


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("layer_replication", [[0, 2]]),
        ("trainable_token_indices", [1]),
        ("target_parameters", ["x.weight"]),
        ("lora_bias", True),
        ("megatron_config", {"a": 1}),
        ("velora_config", {}),
        ("eva_config", {"rho": 2.0}),
        ("use_qalora", True),
        ("a_field_of_tomorrow", 0.5),
        ("a_field_of_tomorrow", 0),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(folder: Path, field: str, value: object) -> None:
    change(folder, **{field: value})
    if value == {}:
        assert read_adapter(folder)
        return
    with pytest.raises(LoraError, match=f"{field}: .* is not supported"):
        read_adapter(folder)


@pytest.mark.parametrize("initial", ["pissa", "pissa_niter_4", "olora", "corda", "eva", "loftq", "lora_ga", "mica", None, 1, []])
def test_initial_values_that_belong_to_another_base(folder: Path, initial: object) -> None:
    change(folder, init_lora_weights=initial)
    with pytest.raises(LoraError, match="init_lora_weights"):
        read_adapter(folder)


@pytest.mark.parametrize("initial", [True, False, "gaussian", "orthogonal"])
def test_initial_values_that_leave_the_base(folder: Path, initial: object) -> None:
    change(folder, init_lora_weights=initial)
    assert read_adapter(folder).settings.rank == 2


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("peft_type", "LOHA"),
        ("peft_type", None),
        ("task_type", "TOKEN_CLS"),
        ("task_type", ["SEQ_CLS"]),
        ("r", 0),
        ("r", "8"),
        ("r", True),
        ("r", 2.0),
        pytest.param("r", 10**400, id="r-enormous"),
        ("lora_alpha", 0),
        ("lora_alpha", "16"),
        ("lora_alpha", True),
        pytest.param("lora_alpha", 10**400, id="lora_alpha-enormous"),
        ("lora_alpha", 1e308),
        ("lora_alpha", None),
        ("lora_dropout", 1.0),
        ("lora_dropout", -0.1),
        ("lora_dropout", None),
        ("bias", "some"),
        ("bias", ["all"]),
        ("use_rslora", "yes"),
        ("use_dora", "yes"),
        ("target_modules", {"query": 1}),
        ("target_modules", [1]),
        ("modules_to_save", "classifier"),
        ("modules_to_save", [["classifier"]]),
        ("modules_to_save", [""]),
        ("base_model_name_or_path", 3),
        ("rank_pattern", {"query": 0}),
        ("rank_pattern", {"query": "3"}),
        ("rank_pattern", ["query"]),
        pytest.param("rank_pattern", {"(q+)+uery": 2}, id="rank_pattern-expression"),
        ("alpha_pattern", {"query": 0}),
        ("alpha_pattern", {"": 1.0}),
    ],
)
def test_values_of_the_wrong_kind(folder: Path, field: str, value: object) -> None:
    change(folder, **{field: value})
    with pytest.raises(LoraError, match=f"{field}: .* is not "):
        read_adapter(folder)


def test_the_lengths_of_dora_want_use_dora(tmp_path: Path) -> None:
    model = nn.ModuleDict({"query": nn.Linear(4, 4)})
    apply_lora(model, ["query"], rank=2, alpha=4.0)
    start_dora(model)
    mark_only_lora_as_trainable(model)
    settings = adapter_settings(model, bias="none", base=None, task_type="FEATURE_EXTRACTION")
    write_adapter(tmp_path, lora_state_dict(model), settings)
    assert read_adapter(tmp_path).settings.dora
    for refused in (cut_ranks_of, summed):
        with pytest.raises(LoraError, match="DoRA's lengths"):
            refused(read_adapter(tmp_path))
    change(tmp_path, use_dora=False)
    with pytest.raises(LoraError, match=r"unexpected: .*lora_magnitude_vector"):
        read_adapter(tmp_path)
    change(tmp_path, use_dora=True)
    change_tensors(tmp_path, lambda tensors: without(tensors, "base_model.model.query.lora_magnitude_vector"))
    with pytest.raises(LoraError, match=r"missing: query\.lora_magnitude"):
        read_adapter(tmp_path)


def cut_ranks_of(adapter: AdapterFile) -> AdapterFile:
    return cut_ranks(adapter, {}, {"query": 1})


def summed(adapter: AdapterFile) -> AdapterFile:
    return combine_adapters([adapter], [1.0])


def test_all_problems_at_once(folder: Path) -> None:
    change(folder, use_qalora=True, r=-1, tomorrow="x")
    with pytest.raises(LoraError) as caught:
        read_adapter(folder)
    assert len(str(caught.value).splitlines()) == 4


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", "not valid JSON"),
        ("[1, 2]", "must hold an object, not a list"),
        ('{"r": NaN}', "NaN is not a number"),
        ('{"lora_alpha": -Infinity}', "-Infinity is not a number"),
        ("[" * 100_000, "not valid JSON"),
        ('{"r": ' + "9" * 5000 + "}", "not valid JSON"),
        (b"\xff\xfe{}", "not valid JSON"),
        ("{}", "peft_type: None is not LORA"),
        (" " * (16 * 2**20 + 1), "too large"),
    ],
    ids=["empty", "list", "nan", "infinity", "deep", "long number", "bytes", "no fields", "huge"],
)
def test_configurations_that_are_none(folder: Path, text: str | bytes, shown: str) -> None:
    (folder / CONFIG_FILE).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(LoraError, match=shown):
        read_adapter(folder)


def test_missing_files(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(LoraError, match=f"{CONFIG_FILE} is missing"):
        read_adapter(tmp_path / "nowhere")
    (folder / TENSOR_FILE).unlink()
    with pytest.raises(LoraError, match=f"{TENSOR_FILE} is missing"):
        read_adapter(folder)
    (folder / TENSOR_FILE).mkdir()
    with pytest.raises(LoraError, match=r"cannot read|damaged"):
        read_adapter(folder)


def test_a_pickle_is_refused_and_never_opened(folder: Path) -> None:
    (folder / TENSOR_FILE).rename(folder / PICKLE_FILE)
    with pytest.raises(LoraError, match="a pickle, which can run any code"):
        read_adapter(folder)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_tensor_files_cut_short(folder: Path, keep: int) -> None:
    content = (folder / TENSOR_FILE).read_bytes()
    (folder / TENSOR_FILE).write_bytes(content[:keep])
    with pytest.raises(LoraError, match="damaged"):
        read_adapter(folder)


@pytest.mark.parametrize(
    ("edit", "shown"),
    [
        (lambda tensors: {}, "no layer is adapted"),
        (
            lambda tensors: without(tensors, f"{QUERY}.lora_B.weight"),
            r"missing: bert\.encoder\.layer\.0\.attention\.self\.query\.lora_B",
        ),
        (lambda tensors: without(tensors, f"{QUERY}.lora_A.weight"), r"half a layer only: bert\..*query\.lora_B"),
        (lambda tensors: without(tensors, QUERY), r"no tensors for the target 'bert\..*query'"),
        (lambda tensors: without(tensors, "base_model.model.classifier"), "no tensors of a classification head"),
        (lambda tensors: tensors | {f"{QUERY}.lora_A.weight": torch.zeros(3, 16)}, r"shape \(3, 16\), which is not of rank 2"),
        (lambda tensors: tensors | {f"{QUERY}.lora_A.weight": torch.zeros(2)}, r"shape \(2,\)"),
        (lambda tensors: tensors | {f"{QUERY}.lora_A.weight": torch.full((2, 16), torch.nan)}, "not finite"),
        (lambda tensors: tensors | {f"{QUERY}.lora_A.weight": torch.zeros(2, 16, dtype=torch.int8)}, "not finite"),
        (lambda tensors: tensors | {f"{QUERY}.lora_magnitude_vector": torch.ones(16)}, "unexpected: .*lora_magnitude_vector"),
        (lambda tensors: tensors | {f"{QUERY}.base_layer.bias": torch.ones(16)}, r"unexpected: .*base_layer\.bias"),
        (lambda tensors: tensors | {"bert.x.lora_A.weight": torch.ones(2, 2)}, r"unexpected: bert\.x"),
        (lambda tensors: tensors | {"base_model.model.bert.embeddings.word_embeddings.weight": torch.ones(2, 2)}, "unexpected"),
    ],
)
def test_tensors_that_do_not_go_with_the_configuration(folder: Path, edit: Any, shown: str) -> None:
    change_tensors(folder, edit)
    with pytest.raises(LoraError, match=shown):
        read_adapter(folder)


def without(tensors: dict[str, torch.Tensor], beginning: str) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(beginning)}


def test_a_huge_rank_costs_nothing(folder: Path) -> None:
    change(folder, r=2**31 - 1)
    with pytest.raises(LoraError, match="which is not of rank 2147483647"):
        read_adapter(folder)


def test_a_rank_of_its_own_that_its_tensors_do_not_have(folder: Path) -> None:
    change(folder, rank_pattern={r"^bert\.encoder\.layer\.0\.attention\.self\.query": 3})
    with pytest.raises(LoraError, match=r"query.lora_A has the shape \(2, 16\), which is not of rank 3"):
        read_adapter(folder)


def test_only_what_differs_is_written_as_a_pattern(tmp_path: Path) -> None:
    model, query = bert(), QUERY.removeprefix("base_model.model.")
    apply_lora(model, ["query", "value"], rank=2, alpha=4.0, ranks={query: 5}, alphas={query: 2.5})
    mark_only_lora_as_trainable(model)
    unfreeze(model, ["classifier"])
    save(model, tmp_path)
    fields = json.loads((tmp_path / CONFIG_FILE).read_text())
    assert (fields["r"], fields["rank_pattern"]) == (2, {query: 5})
    assert (fields["lora_alpha"], fields["alpha_pattern"]) == (4, {query: 2.5})


def test_paths_that_peft_would_confuse_are_not_written(tmp_path: Path) -> None:
    def inner() -> nn.ModuleDict:
        return nn.ModuleDict({"query": nn.Linear(4, 4)})

    model = nn.ModuleDict({"a": inner(), "b": nn.ModuleDict({"a": inner()}), "c": inner()})
    apply_lora(model, ["query"], rank=2, alpha=4.0, ranks={"a.query": 1})
    mark_only_lora_as_trainable(model)
    settings = adapter_settings(model, bias="none", base=None, task_type="FEATURE_EXTRACTION")
    with pytest.raises(LoraError, match=r"another layer for b\.a\.query"):
        write_adapter(tmp_path, lora_state_dict(model), settings)


def test_a_module_to_save_without_its_tensors(folder: Path) -> None:
    change(folder, modules_to_save=["bert.pooler"])
    with pytest.raises(LoraError, match=r"no tensors for 'bert.pooler' of modules_to_save"):
        read_adapter(folder)


def test_a_module_to_save_inside_another(folder: Path) -> None:
    change(folder, modules_to_save=["classifier", "inner.classifier"])
    change_tensors(folder, lambda tensors: tensors | {"base_model.model.classifier.inner.classifier.weight": torch.ones(2, 2)})
    with pytest.raises(LoraError, match=r"classifier.inner.classifier inside another"):
        read_adapter(folder)


def test_an_adapter_for_another_model_does_not_fit(folder: Path) -> None:
    wider = AutoModelForSequenceClassification.from_config(BertConfig(**(SMALL | {"hidden_size": 32})))
    with pytest.raises(LoraError, match="does not fit the model"):
        apply_adapter(wider, read_adapter(folder))
    labels = AutoModelForSequenceClassification.from_config(BertConfig(**SMALL, num_labels=5))
    with pytest.raises(LoraError, match=r"classifier.weight is 2×16, the model's 5×16"):
        apply_adapter(labels, read_adapter(folder))


def test_half_precision_files_are_read(folder: Path) -> None:
    change_tensors(folder, lambda tensors: {name: tensor.bfloat16() for name, tensor in tensors.items()})
    adapter = read_adapter(folder)
    model = bert()
    apply_adapter(model, adapter)
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor.float()) for name, tensor in adapter.tensors.items())


def test_writing_what_does_not_go_together(tmp_path: Path) -> None:
    model = adapted()
    settings = adapter_settings(model, bias="none", base=None, task_type="SEQ_CLS")
    with pytest.raises(LoraError, match="no tensors for 'classifier'"):
        write_adapter(tmp_path, lora_state_dict(model), settings)
    with pytest.raises(LoraError, match="missing"):
        write_adapter(tmp_path, {}, settings)
    assert not list(tmp_path.iterdir())


def test_settings_that_the_format_cannot_hold() -> None:
    def settings(model: nn.Module) -> object:
        return adapter_settings(model, bias="none", base=None, task_type="SEQ_CLS")

    mixed = adapted()
    mixed.bert.encoder.layer[0].attention.self.query.dropout = 0.5
    with pytest.raises(LoraError, match="2 combinations"):
        settings(mixed)
    partly = adapted()
    partly.bert.pooler.dense.weight.requires_grad_(True)
    with pytest.raises(LoraError, match=r"trained in part: bert.pooler.dense.weight"):
        settings(partly)
    head = bert()
    apply_lora(head, ["query", "classifier"], rank=2, alpha=4.0)
    mark_only_lora_as_trainable(head)
    with pytest.raises(LoraError, match="exclude classifier in apply_lora"):
        settings(head)
