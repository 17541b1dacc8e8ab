from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    DebertaV2Model,
    GPT2Config,
)

import veneer.lora
from veneer.errors import LoraError
from veneer.lora import LoraLinear, SharedInput, apply_lora, linear_layers, lora_layers, shared_input_groups

SMALL = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 20}


@pytest.fixture
def bert() -> nn.Module:
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(BertConfig(**SMALL)).eval()


def logits(model: nn.Module) -> Tensor:
    return model(input_ids=torch.tensor([[2, 5, 7, 3]])).logits


def adapt(model: nn.Module, targets: str | list[str], **more: object) -> list[str]:
    return apply_lora(model, targets, **({"rank": 2, "alpha": 4.0} | more))  # type: ignore[arg-type]


def test_the_first_output_is_the_bases_and_the_weights_are_shared(bert: nn.Module) -> None:
    before, weights = logits(bert), dict(bert.named_parameters())
    names = adapt(bert, ["query", "dense"])
    assert torch.equal(logits(bert), before)
    after = dict(bert.named_parameters())
    assert all(after[name] is weight for name, weight in weights.items())
    assert after.keys() - weights.keys() == {f"{name}.{matrix}" for name in names for matrix in ("lora_A", "lora_B")}


def test_settings_reach_the_layers(bert: nn.Module) -> None:
    adapt(bert, ["value"], rank=4, alpha=6.0, dropout=0.25, scaling="rslora")
    layers = lora_layers(bert).values()
    assert {(layer.rank, layer.alpha, layer.dropout, layer.scaling, layer.scale) for layer in layers} == {
        (4, 6.0, 0.25, "rslora", 3.0)
    }
    assert not any(layer.training for layer in layers)


def test_endings_are_whole_components_of_a_path(bert: nn.Module) -> None:
    names = adapt(bert, ["output.dense", "1.attention.self.key"])
    assert len(names) == 7
    assert "bert.encoder.layer.1.attention.self.key" in names
    with pytest.raises(LoraError, match="'ense' matches no linear layer"):
        adapt(AutoModelForSequenceClassification.from_config(BertConfig(**SMALL)), ["ense"])


def test_a_pattern_matches_whole_paths(bert: nn.Module) -> None:
    assert adapt(bert, r".*layer\.[02]\.attention\.self\.(query|value)") == [
        f"bert.encoder.layer.{layer}.attention.self.{name}" for layer in (0, 2) for name in ("query", "value")
    ]


def test_a_plain_name_is_a_pattern_that_matches_no_path(bert: nn.Module) -> None:
    with pytest.raises(LoraError, match=r"target_modules: 'query' matches no linear layer. Did you mean 'query'"):
        adapt(bert, "query")
    with pytest.raises(LoraError, match=r"target_modules: 'bert.encoder' matches no linear layer"):
        adapt(bert, "bert.encoder")


def test_all_linear_leaves_the_head_out(bert: nn.Module) -> None:
    inside = [name for name in linear_layers(bert) if name != "classifier"]
    assert adapt(bert, "all-linear") == inside
    assert type(bert.classifier) is nn.Linear
    assert len(lora_layers(bert)) == 3 * 6 + 1


def test_conv1d_is_adapted_as_it_is_stored() -> None:
    torch.manual_seed(0)
    gpt2 = AutoModelForSequenceClassification.from_config(
        GPT2Config(vocab_size=20, n_embd=16, n_layer=1, n_head=2, pad_token_id=0)
    )
    before = logits(gpt2.eval())
    adapt(gpt2, ["c_attn", "c_fc"])
    layer = gpt2.transformer.h[0].attn.c_attn
    assert isinstance(layer, LoraLinear)
    assert (layer.transposed, layer.in_features, layer.out_features) == (True, 16, 48)
    assert tuple(layer.lora_A.shape) == (2, 16)
    assert tuple(layer.lora_B.shape) == (48, 2)
    torch.testing.assert_close(logits(gpt2), before)


def test_layers_limit_by_number(bert: nn.Module) -> None:
    names = adapt(bert, ["query", "dense"], layers=[0, 2])
    assert {name.split(".")[3] for name in names} == {"0", "2"}
    assert len(names) == 2 * 4  # the pooler has no number


@pytest.mark.parametrize(
    ("layers", "shown"), [([0, 3], r"layers \[3\] .* \(0 to 2\)"), ([-1], r"\[-1\]"), ([], r"layers \[\]"), ("top", "'top'")]
)
def test_layers_that_are_not_there(bert: nn.Module, layers: object, shown: str) -> None:
    with pytest.raises(LoraError, match=shown):
        adapt(bert, ["query"], layers=layers)
    assert not lora_layers(bert)


def test_excluded_modules_are_left_alone(bert: nn.Module) -> None:
    names = adapt(bert, ["dense"], exclude=["bert.pooler", "bert.encoder.layer.2"])
    assert {name.split(".")[3] for name in names} == {"0", "1"}
    with pytest.raises(LoraError, match="no module 'pooler'"):
        adapt(bert.bert.embeddings, ["x"], exclude=["pooler"])


def test_nothing_left_to_adapt(bert: nn.Module) -> None:
    with pytest.raises(LoraError, match="no layer is left to adapt"):
        adapt(bert, ["query"], exclude=["bert"])


def test_one_wrong_target_of_many_is_an_error_that_helps(bert: nn.Module) -> None:
    with pytest.raises(LoraError) as caught:
        adapt(bert, ["query", "valeu"])
    assert str(caught.value) == (
        "target_modules: 'valeu' matches no linear layer. Did you mean 'value'? "
        "Linear layers there are: query ×3, key ×3, value ×3, dense ×10, classifier ×1"
    )
    assert not lora_layers(bert)


@pytest.mark.parametrize(
    ("targets", "settings", "shown"),
    [
        ([], {}, "an empty list matches no linear layer"),
        ("(", {}, r"'\(' is not a regular expression"),
        (["query"], {"rank": 0}, "rank"),
        (["query"], {"rank": True}, "rank"),
        (["query"], {"rank": 2.0}, "rank"),
        (["query"], {"alpha": 0.0}, "alpha"),
        (["query"], {"alpha": float("nan")}, "alpha"),
        (["query"], {"dropout": 1.0}, "dropout"),
        (["query"], {"scaling": "rs"}, "scaling"),
    ],
)
def test_values_out_of_range(bert: nn.Module, targets: str | list[str], settings: dict[str, object], shown: str) -> None:
    with pytest.raises(LoraError, match=shown):
        adapt(bert, targets, **settings)


def test_a_model_is_adapted_once(bert: nn.Module) -> None:
    adapt(bert, ["query"])
    with pytest.raises(LoraError, match="has LoRA layers already"):
        adapt(bert, ["key"])


def test_layers_with_a_forward_of_their_own_are_not_linear_layers() -> None:
    class Doubled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    assert list(linear_layers(nn.Sequential(nn.Linear(2, 2), Doubled(2, 2)))) == ["0"]


def test_shared_inputs_are_told_by_name() -> None:
    names = [
        "h.0.attn.query",
        "h.0.attn.value",
        "h.0.out.dense",
        "h.0.crossattention.self.query",
        "h.0.crossattention.self.key",
        "h.1.q_proj",
        "h.1.k_proj",
        "h.1.v_proj",
        "h.1.mlp.up_proj",
        "h.1.mlp.gate_proj",
        "h.2.q_lin",
        "h.2.k_lin",
        "h.2.v_lin",
        "h.3.k",
        "h.4.v_proj",
        "query",
        "key",
    ]
    assert shared_input_groups(names) == [
        ("h.0.attn.query", "h.0.attn.value"),
        ("h.1.q_proj", "h.1.k_proj", "h.1.v_proj"),
        ("h.1.mlp.gate_proj", "h.1.mlp.up_proj"),
        ("h.2.q_lin", "h.2.k_lin", "h.2.v_lin"),
        ("query", "key"),
    ]


@pytest.mark.parametrize(("family", "groups_a_layer"), [("bert", 1), ("distilbert", 1), ("llama", 2), ("deberta-v2", 1)])
def test_groups_do_read_one_tensor(family: str, groups_a_layer: int) -> None:
    sizes = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32} if family == "distilbert" else SMALL
    config = AutoConfig.for_model(family, **{"vocab_size": 20, "pad_token_id": 0} | sizes)
    model = AutoModel.from_config(config).eval()
    seen: dict[str, list[Tensor]] = {name: [] for name in linear_layers(model)}
    for name, module in linear_layers(model).items():
        module.register_forward_pre_hook(lambda _, inputs, name=name: seen[name].append(inputs[0]))
    model(input_ids=torch.tensor([[2, 5, 7, 3]]))
    groups = shared_input_groups(seen)
    assert len(groups) == groups_a_layer * config.num_hidden_layers
    for group in groups:
        assert len({id(seen[name][0]) for name in group}) == 1


def test_relative_positions_go_through_layers_that_share_an_input() -> None:
    """DeBERTa with `share_att_key`, as published: query and key are called with the positions, too, and value is not."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32, "vocab_size": 40}
    positions = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "share_att_key": True, "position_buckets": 8}
    torch.manual_seed(4)
    apart = DebertaV2Model(DebertaV2Config(**sizes, **positions, initializer_range=0.2)).eval().requires_grad_(False)
    apply_lora(apart, ["query_proj", "key_proj", "value_proj"], rank=2, alpha=4)
    for layer in lora_layers(apart).values():
        nn.init.normal_(layer.lora_B)
    shared = copy.deepcopy(apart.double())
    layers = lora_layers(shared)
    groups = shared_input_groups(layers)
    assert [len(group) for group in groups] == [3, 3]
    for group in groups:
        SharedInput([layers[name] for name in group])
    ids = torch.randint(40, (3, 9))
    for _ in range(2):  # what waits after the first batch is not taken for the second
        results = []
        for model in (apart, shared):
            model.zero_grad()
            hidden = model(input_ids=ids).last_hidden_state
            torch.autograd.backward((hidden * torch.arange(32)).tanh().sum())
            results.append([hidden, *(parameter.grad for parameter in model.parameters() if parameter.requires_grad)])
        for expected, ours in zip(*results, strict=True):
            torch.testing.assert_close(ours, expected)
        ids = ids.flip(0, 1)


def test_public_names_are_sorted_and_there() -> None:
    names = veneer.lora.__all__
    assert names == sorted(names)
    assert all(hasattr(veneer.lora, name) for name in names)


def test_torch_and_safetensors_are_all_it_needs() -> None:
    code = "import sys, veneer.lora; sys.exit('transformers' in sys.modules or 'peft' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
