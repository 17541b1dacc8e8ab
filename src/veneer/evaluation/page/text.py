"""Text of others as a page may show it: nothing in it is invisible, reorders its neighbours, or cannot be written as UTF-8.

Knows characters; knows nothing of HTML. Markup is escaped where it is put into a page, by the template and by the charts.
"""

from __future__ import annotations

import re

# Control characters other than tab and line feed; marks that embed, override or isolate a direction of writing, with which a text
# can be shown as another than it is ("Trojan source", CVE-2021-42574); line and paragraph separators; halves of surrogate pairs;
# and code points that are no characters.
_MISLEADING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


def visible(text: str) -> str:
    """`text` with characters that mislead a reader or break a page as `⟨U+202E⟩`."""
    return _MISLEADING.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", text)


def cut(text: str, most: int) -> str:
    """At most about `most` characters of `text`, saying how many there were."""
    return text if len(text) <= most else f"{text[:most].rstrip()} … ({len(text):,} characters)"
