"""New runs out of finished ones, without training: smaller ranks, several adapters as one, ensembles."""

from veneer.thinner.combine import Combined, combine_runs
from veneer.thinner.dev import Dev
from veneer.thinner.ensemble import make_ensemble
from veneer.thinner.shrink import Shrunk, shrink_run

__all__ = ["Combined", "Dev", "Shrunk", "combine_runs", "make_ensemble", "shrink_run"]
