"""A run's report as one HTML page; see `page.render`. Knows `report.json`; knows nothing of folders or of how a run goes."""

from veneer.evaluation.page.render import render_page

__all__ = ["render_page"]
