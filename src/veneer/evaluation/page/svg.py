"""Axes, ticks and lines as SVG elements: what every chart of the page is put together from.

Knows coordinates and nothing of what they mean. Elements are built as a tree, so that text and attributes are escaped when it is
written. Colours are classes, which the page's style sheet gives for light and dark; lines differ in dashes and marks as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from unicodedata import east_asian_width
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from markupsafe import Markup

WIDTH, HEIGHT = 340.0, 236.0  # about the pixels that a phone shows it with, so that its text is as large as the page's
LEFT, RIGHT, BOTTOM = 44.0, 18.0, 38.0
LEGEND_ROW, CHARACTER = 16.0, 6.1  # height of a row, width of an average character
MOST_CELLS = 38  # characters of an entry of the legend
DASHES = ("", "7 4", "2 3", "9 3 2 3")

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Axis:
    """What an axis measures, and from where to where."""

    label: str
    low: float
    high: float

    def share(self, value: float) -> float:
        """Where a value lies: 0 at `low`, 1 at `high`; never outside."""
        return min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))


@dataclass(frozen=True)
class Line:
    """A named line through points of the data, in one of the styles 0 to 3: a colour and a pattern of dashes.

    Attributes:
        marks: each point is marked, with a shape of the style.
        faint: thin and solid, for what is only background.
    """

    name: str
    points: Points
    style: int
    marks: bool = False
    faint: bool = False

    @property
    def look(self) -> dict[str, str]:
        """The attributes of whatever is drawn in this style."""
        dashes = {"stroke-dasharray": DASHES[self.style]} if DASHES[self.style] and not self.faint else {}
        return {"class": f"line s{self.style}{' faint' if self.faint else ''}", **dashes}


@dataclass(frozen=True)
class Canvas:
    """A chart with its axes drawn; `top` is where the plot begins below the legend."""

    root: Element
    x: Axis
    y: Axis
    top: float
    height: float = field(default=HEIGHT)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a point of the data lies on the canvas."""
        left = LEFT + self.x.share(x) * (WIDTH - LEFT - RIGHT)
        bottom = self.height - BOTTOM
        return left, bottom - self.y.share(y) * (bottom - self.top)

    def draw(self, line: Line) -> None:
        """A line; one of a single point is a mark."""
        places = [self.at(x, y) for x, y in line.points]
        if len(places) > 1:
            add(self.root, "polyline", {"points": _path(places), **line.look})
        if line.marks or len(places) == 1:
            for place in places:
                _add_mark(self.root, *place, line.style)

    def fill(self, line: Line) -> None:
        """What lies below a line that begins and ends at the bottom."""
        add(self.root, "polygon", {"class": f"area s{line.style}", "points": _path([self.at(x, y) for x, y in line.points])})

    def upright(self, x: float, label: str) -> None:
        """A marked place on the x axis; the text stands on the side with more room."""
        left, bottom = self.at(x, self.y.low)
        right_side = left < (LEFT + WIDTH - RIGHT) / 2
        add(self.root, "line", {"class": "rule", **ends(left, self.top, left, bottom)})
        anchor = {"x": number(left + (4 if right_side else -4)), "y": number(bottom - 6)}
        add(self.root, "text", {"class": "note", "text-anchor": "start" if right_side else "end", **anchor}, label)

    def diagonal(self) -> None:
        """From the lower left corner to the upper right one."""
        places = [*self.at(self.x.low, self.y.low), *self.at(self.x.high, self.y.high)]
        add(self.root, "line", {"class": "rule", **ends(*places)})


def canvas(title: str, description: str, x: Axis, y: Axis, legend: Sequence[Line]) -> Canvas:
    """An empty chart with axes, ticks and a legend of these lines."""
    rows = _legend_rows(legend)
    top = 10 + LEGEND_ROW * len(rows)
    height = HEIGHT + LEGEND_ROW * max(0, len(rows) - 1)
    root = picture(title, description, height)
    drawn = Canvas(root, x, y, top, height)
    for i, row in enumerate(rows):
        _draw_legend_row(root, row, 9 + i * LEGEND_ROW)
    _draw_axes(drawn)
    return drawn


def picture(title: str, description: str, height: float) -> Element:
    """An empty picture that says what it is to those who cannot see it."""
    root = Element("svg", {"viewBox": f"0 0 {number(WIDTH)} {number(height)}", "role": "img", "class": "chart"})
    add(root, "title", {}, title)
    add(root, "desc", {}, description)
    return root


def add(parent: Element, tag: str, attributes: dict[str, str], text: str | None = None) -> Element:
    """An element in a picture; `text` is escaped when the picture is written."""
    element = SubElement(parent, tag, attributes)
    element.text = text
    return element


def ends(x1: float, y1: float, x2: float, y2: float) -> dict[str, str]:
    """The attributes of a line."""
    return {"x1": number(x1), "y1": number(y1), "x2": number(x2), "y2": number(y2)}


def written(root: Element) -> Markup:
    """The picture as markup: the one place where text becomes part of a page without the template's escaping."""
    return Markup(ElementTree.tostring(root, encoding="unicode", short_empty_elements=False))


def number(value: float) -> str:
    """A coordinate, to a tenth."""
    return f"{value:.1f}".removesuffix(".0")


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round values from `low` to `high`, at most about `most`: 1, 2 or 5 times a power of ten apart."""
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(step for factor in (1, 2, 5, 10) if (step := factor * power) >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def tick_label(value: float, step: float) -> str:
    """A value with the decimals that its neighbours at a distance of `step` differ in; in thousands or millions where all are."""
    if not value:
        return "0"
    if abs(value) >= 1e12 or step < 1e-5:
        return f"{value:.2g}".replace("-", "−")
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if step >= size:
            return f"{value / size:,.0f}{unit}".replace("-", "−")
    return f"{value:,.{max(0, -math.floor(math.log10(step) + 1e-9))}f}".replace("-", "−")


def _draw_axes(drawn: Canvas) -> None:
    root, x, y = drawn.root, drawn.x, drawn.y
    left, bottom = drawn.at(x.low, y.low)
    right, top = drawn.at(x.high, y.high)
    across, up = ticks(x.low, x.high, 6), ticks(y.low, y.high, 5)
    for value in up:
        height = drawn.at(x.low, value)[1]
        add(root, "line", {"class": "grid", **ends(left, height, right, height)})
        place = {"x": number(left - 6), "y": number(height + 3.8), "text-anchor": "end"}
        add(root, "text", place, tick_label(value, _step(up)))
    for value in across:
        place_x = drawn.at(value, y.low)[0]
        add(root, "line", {"class": "axis", **ends(place_x, bottom, place_x, bottom + 4)})
        place = {"x": number(place_x), "y": number(bottom + 16), "text-anchor": "middle"}
        add(root, "text", place, tick_label(value, _step(across)))
    add(root, "line", {"class": "axis", **ends(left, bottom, right, bottom)})
    add(root, "line", {"class": "axis", **ends(left, bottom, left, top)})
    middle = {"x": number((left + right) / 2), "y": number(drawn.height - 5), "text-anchor": "middle"}
    add(root, "text", {"class": "name", **middle}, x.label)
    turned = f"translate(10 {number((top + bottom) / 2)}) rotate(-90)"
    add(root, "text", {"class": "name", "transform": turned, "text-anchor": "middle"}, y.label)


def _step(values: Sequence[float]) -> float:
    return values[1] - values[0] if len(values) > 1 else max(abs(values[0]), 1.0) if values else 1.0


def _legend_rows(legend: Sequence[Line]) -> list[list[tuple[float, str, Line]]]:
    """The entries, each with the place it begins at and its name, in as many rows as they need."""
    rows: list[list[tuple[float, str, Line]]] = []
    place = WIDTH
    for line in legend:
        name = _short(line.name)
        wide = 36 + _cells(name) * CHARACTER
        if place + wide > WIDTH or not rows:
            rows.append([])
            place = LEFT
        rows[-1].append((place, name, line))
        place += wide
    return rows


def _cells(name: str) -> int:
    """The width of a text in characters; those of East Asian scripts are twice as wide as others."""
    return sum(2 if east_asian_width(character) in "WF" else 1 for character in name)


def _short(name: str) -> str:
    if _cells(name) <= MOST_CELLS:
        return name
    while _cells(name) >= MOST_CELLS:
        name = name[:-1]
    return f"{name}…"


def _draw_legend_row(root: Element, row: Sequence[tuple[float, str, Line]], height: float) -> None:
    for place, name, line in row:
        add(root, "line", {**ends(place, height, place + 22, height), **line.look})
        if line.marks:
            _add_mark(root, place + 11, height, line.style)
        add(root, "text", {"x": number(place + 27), "y": number(height + 3.8)}, name)


def _add_mark(root: Element, x: float, y: float, style: int) -> None:
    """A circle, or for other styles than the first a square."""
    if style == 0:
        add(root, "circle", {"class": "mark s0", "cx": number(x), "cy": number(y), "r": "3.2"})
    else:
        size = {"x": number(x - 2.8), "y": number(y - 2.8), "width": "5.6", "height": "5.6"}
        add(root, "rect", {"class": f"mark s{style}", **size})


def _path(places: Points) -> str:
    return " ".join(f"{number(x)},{number(y)}" for x, y in places)
