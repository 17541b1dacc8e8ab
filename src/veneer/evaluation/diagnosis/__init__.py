"""Diagnosis: where a classifier loses, whether threshold, ranking, data or training is the limit, and what to change next.

Knows arrays of logits and targets, texts, and the rows of a training; knows nothing of models, files or the command line.
"""

from veneer.evaluation.diagnosis.diagnose import Diagnosis, diagnose, suggestion_lines
from veneer.evaluation.diagnosis.evidence import Evidence
from veneer.evaluation.diagnosis.suggestions import Suggestion

__all__ = ["Diagnosis", "Evidence", "Suggestion", "diagnose", "suggestion_lines"]
