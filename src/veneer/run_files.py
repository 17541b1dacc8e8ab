"""The names of the files that a run folder is told by. Imports nothing: `veneer --help` reads them without torch."""

from __future__ import annotations

CONFIG_FILE = "config.yaml"
INFO_FILE = "veneer.json"
REPORT_FILE = "report.json"
PAGE_FILE = "report.html"
LOG_FILE = "train.log"
METRICS_FILE = "metrics.jsonl"
MEMBERS = "members"  # of an ensemble: its runs lie in members/1, members/2, …
