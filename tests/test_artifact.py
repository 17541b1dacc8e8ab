"""The run folder: what is in it, and that one that is foreign, damaged or unfinished is refused with what and why."""

from __future__ import annotations

import ast
import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import veneer
from toy_runs import run, toy_config
from veneer.artifact import load_artifact, save_artifact
from veneer.durable import write_text
from veneer.errors import ArtifactError, BaseError
from veneer.run_info import read_info, update_info
from veneer.tasks import PLAIN, Calibration

Base = Callable[..., Path]
SOURCES = Path(veneer.__file__).parent


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_base: Base) -> Path:
    """A finished run; copy it before changing a file in it."""
    return run(toy_config(tmp_path_factory.mktemp("trained"), tiny_base("bert"), training__epochs=1)).folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A copy of a finished run."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def edit(folder: Path, **changes: Any) -> None:
    """Change keys of `veneer.json`; `...` removes one."""
    path = folder / "veneer.json"
    tree = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps({key: value for key, value in tree.items() if value is not ...}), encoding="utf-8")


def sign(folder: Path, name: str) -> None:
    """Make `veneer.json` take the file as it is now."""
    files = json.loads((folder / "veneer.json").read_text(encoding="utf-8"))["files"]
    edit(folder, files=files | {name: hashlib.sha256((folder / name).read_bytes()).hexdigest()})


def refusal(folder: Path, **options: Any) -> str:
    """What `load` says of a folder that it refuses."""
    with pytest.raises(ArtifactError) as refused:
        veneer.load(folder, **options)
    return str(refused.value)


def test_the_files_of_a_run_folder(trained: Path) -> None:
    tokenizer = {"tokenizer.json", "tokenizer_config.json"}
    adapter = {"adapter_config.json", "adapter_model.safetensors", "veneer.json"}
    rest = {"config.yaml", "metrics.jsonl", "train.log", "report.json", "report.html", "last"}
    assert {path.name for path in trained.iterdir()} == tokenizer | adapter | rest
    assert {path.name for path in (trained / "last").iterdir()} == tokenizer | adapter
    assert len({path.stat().st_mode for path in trained.iterdir() if path.is_file()}) == 1  # who reads one reads all
    tree = json.loads((trained / "veneer.json").read_text(encoding="utf-8"))
    assert (tree["format_version"], tree["method"]) == (2, "lora")
    assert tree["files"].keys() == tokenizer | adapter - {"veneer.json"}
    info = read_info(trained)
    assert (info.task, info.labels, info.pooling) == ("single_label", ("bad", "good"), "cls")
    assert info.calibration == PLAIN.to_json()  # so few texts say nothing else
    assert info.base_fingerprint.startswith("sha256:")
    assert info.scores.keys() >= {"accuracy", "macro_f1"}
    assert info.versions["torch"] == metadata.version("torch")


def test_what_is_said_of_a_run_can_be_replaced(folder: Path) -> None:
    """Its files, and the adapter of the last step, are left alone."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    calibration = Calibration(slopes=(0.5,), offsets=(0.0, 0.25))
    update_info(folder, replace(read_info(folder), calibration=calibration.to_json()))
    assert {path.name for path, content in before.items() if path.read_bytes() != content} == {"veneer.json"}
    assert (folder / "last" / "veneer.json").read_bytes() == before[folder / "last" / "veneer.json"]
    assert veneer.load(folder).calibration == calibration
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ArtifactError, match=r"tokenizer\.json is missing"):
        update_info(folder, read_info(folder / "last"))


def test_another_base_is_refused(folder: Path, tiny_base: Base) -> None:
    said = refusal(folder, base=str(tiny_base("electra")))
    assert "was trained on another base" in said
    assert str(tiny_base("electra")) in said
    assert said.count("sha256:") == 2


def test_a_base_that_is_gone_is_told(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BaseError, match="no-such-base"):
        veneer.load(folder, base=str(tmp_path / "no-such-base"))


@pytest.mark.parametrize("labels", [["bad", "fair", "good"], ["bad"]])
def test_another_label_count_is_refused(labels: list[str], folder: Path) -> None:
    edit(folder, labels=labels)
    said = refusal(folder)
    assert f"{len(labels)} labels" in said
    assert "classifier.weight" in said
    assert said.endswith("Fix: copy the whole folder again, or train again")


def test_another_label_count_is_refused_by_our_own_head(tmp_path: Path, tiny_base: Base) -> None:
    folder = run(toy_config(tmp_path, tiny_base("bert"), training__epochs=1, pooling="mean")).folder
    edit(folder, labels=["bad", "fair", "good"])
    said = refusal(folder)
    assert "head.safetensors does not fit 3 labels: it holds bias [2]; weight [2, 32], but needed are bias [3]" in said
    assert said.endswith("Fix: copy the whole folder again, or train again")


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json", "tokenizer.json"])
def test_a_flipped_bit_is_found(name: str, folder: Path) -> None:
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    said = refusal(folder)
    assert f"{name} is damaged: its checksum" in said
    assert "Fix:" in said


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    assert "tokenizer.json is missing" in refusal(folder)


def test_a_missing_head_is_named(tmp_path: Path, tiny_base: Base) -> None:
    folder = run(toy_config(tmp_path, tiny_base("bert"), training__epochs=1, pooling="mean")).folder
    files = json.loads((folder / "veneer.json").read_text(encoding="utf-8"))["files"]
    files.pop("head.safetensors")
    edit(folder, files=files)
    (folder / "head.safetensors").write_bytes(b"not tensors")
    assert "head.safetensors does not fit" in refusal(folder)
    (folder / "head.safetensors").unlink()
    assert "head.safetensors does not fit" in refusal(folder)


def test_a_folder_from_before_there_were_methods_is_lora(folder: Path) -> None:
    path = folder / "veneer.json"
    tree = json.loads(path.read_text(encoding="utf-8"))
    del tree["method"]
    path.write_text(json.dumps(tree | {"format_version": 1}), encoding="utf-8")
    assert read_info(folder).method == "lora"
    assert load_artifact(folder).info.method == "lora"


def test_a_method_that_nobody_knows_is_refused(folder: Path) -> None:
    edit(folder, method="levitation")
    assert "method" in refusal(folder)


@pytest.mark.parametrize(("version", "fix"), [(3, "update veneer"), (0, "copy"), ("1", "copy"), (None, "copy")])
def test_an_unknown_format_version_is_refused(version: Any, fix: str, folder: Path) -> None:
    """Whatever else such a version has in it."""
    edit(folder, format_version=version, something_new={"a": 1})
    said = refusal(folder)
    assert f"format version {version!r}; this veneer reads versions 1 and 2. Fix: {fix}" in said


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "last/veneer.json", "..", "a\\..\\b/../c"])
def test_names_of_files_outside_the_folder_are_refused(name: str, folder: Path) -> None:
    files = json.loads((folder / "veneer.json").read_text(encoding="utf-8"))["files"]
    edit(folder, files=files | {name: "0" * 64})
    assert "names a file outside the folder" in refusal(folder)


HOSTILE: dict[str, dict[str, Any]] = {
    "labels": {"labels": "abc"},
    "labels, none": {"labels": []},
    "labels, numbers": {"labels": [1, 2]},
    "labels, lists": {"labels": [["a"], ["b"]]},
    "labels, equal": {"labels": ["a", "a"]},
    "labels, gone": {"labels": ...},
    "task": {"task": "regression"},
    "task, a list": {"task": ["single_label"]},
    "task, gone": {"task": ...},
    "pooling": {"pooling": "max"},
    "own_head": {"own_head": 1},
    "max_length": {"max_length": "128"},
    "max_length, 0": {"max_length": 0},
    "max_length, true": {"max_length": True},
    "pair": {"pair": "yes"},
    "base": {"base": None},
    "base_fingerprint": {"base_fingerprint": 5},
    "scores": {"scores": []},
    "calibration": {"calibration": [1]},
    "calibration, empty": {"calibration": {}},
    "calibration, left without offsets": {"calibration": Calibration().to_json() | {"left": [0]}},
    "calibration, left alone": {"calibration": Calibration(offsets=(0.0, 1.0)).to_json() | {"left": [2]}},
    "calibration, too many": {"calibration": Calibration().to_json() | {"offsets": [0.0, 0.0, 0.0]}},
    "verbaliser": {"verbaliser": ["{text}:"]},
    "verbaliser, empty": {"verbaliser": {}},
    "verbaliser, words": {"verbaliser": {"template": "{text}:", "words": ["a"], "length_normalised": False}},
    "verbaliser, numbers": {"verbaliser": {"template": "{text}:", "words": [1, 2], "length_normalised": False}},
    "verbaliser, none of one label": {
        "verbaliser": {"template": "{text}:", "words": ["a", "b"], "length_normalised": False, "none": "c"},
    },
    "verbaliser, no template": {"verbaliser": {"template": None, "words": ["a", "b"], "length_normalised": False}},
    "verbaliser, no place": {"verbaliser": {"template": "x:", "words": ["a", "b"], "length_normalised": False}},
    "verbaliser, over a head": {"verbaliser": {"template": "{text}: ", "words": ["a", "b"], "length_normalised": False}},
    "verbaliser, of an ensemble": {
        "verbaliser": {"template": "{text}: ", "words": ["a", "b"], "length_normalised": False},
        "members": 2,
    },
    "files": {"files": []},
    "files, none": {"files": {}},
    "files, gone": {"files": ...},
    "surprise": {"surprise": 1},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_values_that_veneer_does_not_write_are_refused(name: str, folder: Path) -> None:
    edit(folder, **HOSTILE[name])
    said = refusal(folder)
    assert "veneer.json is damaged" in said
    if "labels, " not in name:
        assert name.partition(",")[0] in said


@pytest.mark.parametrize(
    ("content", "said"),
    [("{", "cannot read"), ("[1]", "holds a list"), ("\x00\x00", "cannot read"), ('{"a": 1}', "format version None")],
)
def test_a_veneer_json_that_is_none_is_refused(content: str, said: str, folder: Path) -> None:
    (folder / "veneer.json").write_text(content, encoding="utf-8")
    assert said in refusal(folder)


def test_tensors_that_do_not_fit_are_refused(folder: Path) -> None:
    """Although their checksum is right."""
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("lora_A.weight"))
    for changed in ({name: torch.zeros(4, 7)}, {name: torch.full_like(tensors[name], float("nan"))}):
        save_file(tensors | changed, path, metadata={"format": "pt"})
        sign(folder, path.name)
        assert name.split(".")[-3] in refusal(folder)
    path.write_bytes(b"\xff" * 50)
    sign(folder, path.name)
    assert "adapter_model.safetensors" in refusal(folder)


def test_a_base_that_says_otherwise_how_it_pools_is_refused(tmp_path: Path, tiny_base: Base) -> None:
    """Configuration and weights are the same, so that the fingerprint cannot tell; another head would be a random one."""
    base = Path(shutil.copytree(tiny_base("bert"), tmp_path / "base"))
    (base / "1_Pooling").mkdir()
    (base / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}', encoding="utf-8")
    folder = run(toy_config(tmp_path, base, training__epochs=1)).folder
    assert read_info(folder).own_head is False
    (base / "1_Pooling" / "config.json").unlink()
    assert "1_Pooling/config.json" in refusal(folder)
    (base / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}', encoding="utf-8")
    assert "cls pooling" in refusal(folder)


def test_what_is_no_run_folder_says_why(tmp_path: Path, tiny_base: Base) -> None:
    assert "does not exist" in refusal(tmp_path / "nowhere")
    said = refusal(tiny_base("bert"))  # as a merged folder is
    assert "is no run folder: it holds no veneer.json, but a plain transformers checkpoint, such as veneer merge writes" in said
    assert "Fix: the folder of the run itself" in said
    (tmp_path / "stopped 1" / "checkpoints").mkdir(parents=True)
    resume = f"Fix: veneer train --out '{tmp_path / 'stopped 1'}' --resume"
    assert f"holds an unfinished run. {resume}" in refusal(tmp_path / "stopped 1")
    (tmp_path / "file.csv").write_text("x", encoding="utf-8")
    assert refusal(tmp_path / "file.csv").startswith(f"{tmp_path / 'file.csv'} is a file, not a run folder. Fix: ")
    (tmp_path / "empty").mkdir()
    assert refusal(tmp_path / "empty").endswith("is no run folder: it holds no veneer.json")


def test_saving_again_over_a_folder_is_whole_or_unfinished(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill between the files leaves no `veneer.json`, so that old and new files are never taken for one adapter."""
    loaded = load_artifact(folder)
    replace = Path.replace
    moved: list[str] = []

    def stop(self: Path, target: Path) -> Path:
        if moved:
            raise KeyboardInterrupt
        moved.append(self.name)
        return replace(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            save_artifact(folder, loaded.model, loaded.tokenizer, loaded.info)
    assert not (folder / "veneer.json").exists()
    save_artifact(folder, loaded.model, loaded.tokenizer, loaded.info)
    assert read_info(folder) == loaded.info


def test_a_small_file_is_replaced_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.json"
    write_text(path, "old")

    def fail(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", fail)
        with pytest.raises(OSError, match="No space"):
            write_text(path, "new, and longer")
    assert path.read_text(encoding="utf-8") == "old"
    write_text(path, "new")
    assert path.read_text(encoding="utf-8") == "new"


def test_no_file_of_a_run_is_a_pickle(trained: Path) -> None:
    files = [path for path in trained.rglob("*") if path.is_file()]
    assert len(files) > 10
    for path in files:
        assert path.suffix in {".json", ".jsonl", ".html", ".safetensors", ".yaml", ".log", ".txt"}, path
        assert not zipfile.is_zipfile(path), path  # as torch.save writes
        assert not path.read_bytes().startswith(b"\x80"), path  # as pickle does


def test_nothing_in_the_package_pickles() -> None:
    """No import of a pickling module, no `torch.load` or `torch.save`, no `weights_only`, no code from elsewhere."""
    found = []
    for path in SOURCES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                names = [f"{node.value.id}.{node.attr}"]
            elif isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                names = [] if isinstance(node.value, ast.Constant) and node.value.value is False else ["trust_remote_code"]
            else:
                continue
            found += [(path.name, name) for name in names if name.split(".")[0] in PICKLERS or name in FORBIDDEN]
    assert found == []


PICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "trust_remote_code"}
FORBIDDEN = {"torch.load", "torch.save", "np.load", "numpy.load"}


def test_a_tokenizer_with_several_chat_templates_is_saved_and_read(folder: Path, tmp_path: Path) -> None:
    """transformers writes all but the first into a folder of their own."""
    loaded = load_artifact(folder)
    loaded.tokenizer.chat_template = {"default": "{{ messages }}", "tools": "{{ tools }}"}
    save_artifact(tmp_path / "again", loaded.model, loaded.tokenizer, loaded.info)
    assert all(path.is_file() for path in (tmp_path / "again").iterdir())
    ids = load_artifact(tmp_path / "again").tokenizer("a great film").input_ids
    assert ids == loaded.tokenizer("a great film").input_ids


def test_what_an_information_file_lacks_is_named(folder: Path) -> None:
    edit(folder, labels=..., task=...)
    assert "veneer.json is damaged: it lacks labels, task. Fix: copy the whole folder again" in refusal(folder)
