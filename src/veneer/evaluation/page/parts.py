"""What every part of a report that the page shows is made of: names and texts fit for a page, finite numbers, lists.

Strings are cut to a length that a page can hold, and characters that mislead are made visible (`page.text`). Knows no part.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, FiniteFloat, ValidationError

from veneer.errors import ArtifactError
from veneer.evaluation.page.text import cut, visible

MOST_OF_A_TEXT = 700  # characters
MOST_OF_A_NAME = 80
MOST_FAULTS = 5  # listed of a damaged report

T = TypeVar("T")
P = TypeVar("P", bound=BaseModel)


def _shown(most: int) -> AfterValidator:
    return AfterValidator(lambda text: visible(cut(text, most)))


Text = Annotated[str, _shown(MOST_OF_A_TEXT)]
Name = Annotated[str, _shown(MOST_OF_A_NAME)]
Number = FiniteFloat
Pair = tuple[Number, Number]
Many = Annotated[tuple[T, ...], BeforeValidator(lambda value: () if value is None else value)]
Named = Annotated[dict[Name, T], BeforeValidator(lambda value: {} if value is None else value)]


PART = ConfigDict(frozen=True, extra="ignore")  # of every part's model: later versions may say more


def read_part(kind: type[P], found: Mapping[str, Any]) -> P:
    """A part as it stands in a report.

    Raises:
        ArtifactError: a key is missing or has a value that veneer does not write; the message names the first few.
    """
    try:
        return kind.model_validate(dict(found))
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        places = [f"{'.'.join(str(key) for key in fault['loc'])}: {fault['msg']}" for fault in faults[:MOST_FAULTS]]
        more = f"; and {len(faults) - MOST_FAULTS} more" if len(faults) > MOST_FAULTS else ""
        raise ArtifactError(f"the report is damaged: {visible('; '.join(places))}{more}") from None
