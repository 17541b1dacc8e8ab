"""The pages point at files that are there, and their snippets run as they stand, on tiny bases."""

from __future__ import annotations

import ast
import re
import runpy
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertForSequenceClassification
from typer.main import get_command

from toy_runs import run, toy_config, toy_rows, write_csv
from veneer.artifact import load_artifact
from veneer.cli import app
from veneer.data import encode
from veneer.inference import compute_logits
from veneer.lora import lora_layers

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "benchmarks" / "README.md"])
LINK = re.compile(r"\]\(([^)\s]+)\)")
MAX_LENGTH = 4  # tokens: fewer than the snippets' texts have

NOT_COMMANDS = [("mean", [])]  # a line of the benchmarks' tables

Base = Callable[..., Path]


def snippet(page: str, about: str) -> str:
    """The one Python block of `page` that mentions `about`."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    (found,) = (block for block in blocks if about in block)
    return str(found)


def execute(code: str, names: dict[str, str], folder: Path) -> dict[str, Any]:
    """Run `code` from `folder`, other names put for those it holds; what it defined."""
    for name, other in names.items():
        assert name in code
        code = code.replace(name, other)
    path = folder / "snippet.py"
    path.write_text(code, encoding="utf-8")
    return runpy.run_path(str(path))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_resolves(page: Path) -> None:
    links = [link.partition("#")[0] for link in LINK.findall(page.read_text(encoding="utf-8"))]
    missing = [link for link in links if link and "://" not in link and not (page.parent / link).exists()]
    assert missing == []


def test_links_and_snippets_are_found() -> None:
    assert "docs/configuration.md" in LINK.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(PAGES) >= 6


def command_lines() -> list[tuple[str, str, bool]]:
    """Every `veneer …` of the pages as (page, command line, whether it stands in a block, and so is whole)."""
    found = []
    for page in PAGES:
        name, text = str(page.relative_to(ROOT)), page.read_text(encoding="utf-8")
        for block in re.findall(r"```(?:bash|sh|console)?\n(.*?)```", text, re.DOTALL):
            lines = block.replace("\\\n", " ").splitlines()
            found += [(name, line.strip(), True) for line in lines if line.strip().startswith("veneer ")]
        text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        found += [(name, line, False) for line in re.findall(r"`(veneer [^`]+)`", text)]
    return found


@pytest.mark.parametrize(("page", "line", "whole"), command_lines())
def test_every_command_line_is_one_of_the_program(page: str, line: str, whole: bool) -> None:
    _, name, *words = shlex.split(line, comments=True)
    if (name, words) in NOT_COMMANDS:
        return
    program: Any = get_command(app)
    assert name in program.commands
    command = program.commands[name]
    if whole:
        command.make_context(name, words)  # parses, and runs nothing
        return
    flags = {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
    assert {word for word in words if word.startswith("--")} <= flags


def test_command_lines_are_found() -> None:
    found = command_lines()
    assert sum(whole for *_, whole in found) >= 8
    assert {line.split()[1] for _, line, whole in found if whole} >= {"train", "predict", "evaluate", "calibrate", "doctor"}
    with pytest.raises(Exception, match="No such option"):
        test_every_command_line_is_one_of_the_program("", "veneer train --trian x.csv", True)


class TestTheRunOfTheReadme:
    def test_it_trains_loads_and_predicts(self, tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        rows = [{"review": row["text"], "sentiment": row["label"]} for row in toy_rows(40)]
        write_csv(tmp_path / "reviews.csv", rows)
        monkeypatch.chdir(tmp_path)
        code = snippet("README.md", "veneer.load(")
        made = execute(code, {"minilm": str(tiny_base("bert")), 'model.predict(["': 'said = model.predict(["'}, tmp_path)
        assert (tmp_path / "runs" / "reviews" / "veneer.json").is_file()
        (prediction,) = made["said"]
        assert prediction.scores.keys() == {"good", "bad"}
        assert prediction.labels in {("good",), ("bad",)}


class TestTheLoraSnippetOfTheReadme:
    def test_it_trains_the_adapter_and_the_new_classifier(self, tiny_base: Base, tmp_path: Path) -> None:
        code = snippet("README.md", "from veneer.lora import")
        made = execute(code, {"bert-base-chinese": str(tiny_base("bert"))}, tmp_path)
        model = made["model"]
        assert isinstance(model, BertForSequenceClassification)
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert {"classifier.weight", "classifier.bias"} < trained == set(made["state"])
        assert all(layer.merged for layer in lora_layers(model).values())

    def test_it_uses_every_name_it_imports(self) -> None:
        tree = ast.parse(snippet("README.md", "from veneer.lora import"))
        imported = {name.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for name in node.names}
        assert imported <= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


# transformers deprecates a property that peft still reads.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
class TestTheSnippetsForPeftGiveTheRunsLogits:
    @pytest.mark.parametrize(("family", "pooling"), [("bert", "cls"), ("gpt2", "auto")])
    def test_with_the_familys_own_head(
        self, family: str, pooling: str, tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        names = {"bert-base-chinese": str(tiny_base(family))}
        code = snippet("docs/adapters.md", "AutoModelForSequenceClassification")
        self.check(code, names, "intents", pooling, tmp_path, monkeypatch)

    def test_with_mean_pooling(self, tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        names = {"sentence-transformers/all-MiniLM-L6-v2": str(tiny_base("bert"))}
        self.check(snippet("docs/adapters.md", "head.safetensors"), names, "reviews", "mean", tmp_path, monkeypatch)

    def check(
        self, code: str, names: dict[str, str], run_name: str, pooling: str, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (base,) = names.values()
        out = folder / "runs" / run_name
        run(toy_config(folder, base, pooling=pooling, out=str(out), data__max_length=MAX_LENGTH, training__epochs=1))
        monkeypatch.chdir(folder)
        made = execute(code, names, folder)
        loaded = load_artifact(out, precision="fp32")
        assert made["info"]["own_head"] == (pooling != "mean")
        expected = compute_logits(loaded.model, encode(loaded.tokenizer, made["texts"], None, MAX_LENGTH))
        torch.testing.assert_close(made["logits"], expected, atol=1e-5, rtol=1e-4)
