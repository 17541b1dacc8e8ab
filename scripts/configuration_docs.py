"""Writes docs/configuration.md from the configuration's own fields: python scripts/configuration_docs.py"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from veneer.config import PRESETS, SHORT_FORMS, RunConfig, Section, TaskConfig
from veneer.config_file import known_keys

TARGET = Path(__file__).parent.parent / "docs" / "configuration.md"

HEAD = """# Configuration

Made from the fields themselves by `scripts/configuration_docs.py`; change `src/veneer/config.py` instead.

Every key can be set in a YAML file (`veneer train RUN.yaml`), by `--set section.key=value`, and, where a flag is named, by the
flag. Later ones win: file, flags, `--set`. A preset named in the file gives what nothing else sets; one named by `--preset` (or
`--set lora.preset=…`) outranks the file, too, and yields to flags and `--set`.

`config.yaml` of a run folder is the whole: `task`, `pooling` and `training.precision` say what `auto` came to.
`lora.target_modules` and `training.loss` stay `auto`: which layers that means is in `adapter_config.json`, and the loss follows
from the task.
"""

TASKS = """
## Several tasks

Each of `tasks` has a name, which is its folder's, and these keys ([how it works](multitask.md)); `data` and `task` are then not
given at the top.

| key | what it is |
|---|---|
| `tasks.NAME.data` | its section `data`, with the keys above |
"""


def render() -> str:
    """The page."""
    flags = {key: f"`--{flag.replace('_', '-')}`" for flag, key in SHORT_FORMS.items()}
    parts = [HEAD]
    sections: dict[str, list[str]] = {}
    for key, description in known_keys().items():
        section = key.rpartition(".")[0]
        cells = [f"`{key}`", flags.get(key, ""), f"`{_default(key)}`", description]
        sections.setdefault(section, []).append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    for section, rows in sections.items():
        heading = f"\n## {section or 'Top level'}\n\n| key | flag | default | what it is |\n|---|---|---|---|\n"
        parts.append(heading + "\n".join(rows) + "\n")
    parts.append(TASKS + "".join(_task_row(name) for name in TaskConfig.model_fields if name != "data"))
    parts.append("\n## Presets\n\n| preset | gives |\n|---|---|\n")
    for preset, values in PRESETS.items():
        parts.append(f"| `{preset}` | {', '.join(f'`{key}: {value}`' for key, value in values.items())} |\n")
    return "".join(parts)


def _task_row(name: str) -> str:
    description = (TaskConfig.model_fields[name].description or "").replace("|", "\\|")
    return f"| `tasks.NAME.{name}` | {description} |\n"


def _default(key: str) -> str:
    value: Any = RunConfig()
    for name in key.split("."):
        value = getattr(value, name)
    assert not isinstance(value, Section)
    return yaml.safe_dump(value, default_flow_style=True).replace("\n...", "").strip()


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
