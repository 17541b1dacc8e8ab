"""Pictures of a report page as a phone, a desk and a printer show it: python scripts/screenshots.py REPORT.html OUT_FOLDER

Needs Chromium or Chrome on the PATH. Writes phone-light.png, phone-dark.png, desk-light.png, desk-dark.png and print.pdf. Fails
where the page is wider than the window: what is wide must scroll in a box of its own.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
WIDTHS = {"phone": 390, "desk": 1280}
SECONDS = 120  # a start on a busy machine takes long
# A window of --headless may not be narrower than 500 pixels, so a page of another width is shown in a frame of that width.
FRAME = """<!doctype html><meta charset="utf-8"><style>body {{ margin: 0 }} iframe {{ border: 0 }}</style>
<iframe src="{page}" width="{width}" height="{height}"></iframe>
<script>
const frame = document.querySelector("iframe");
frame.onload = () => {{
  const root = frame.contentDocument.documentElement;
  document.title = root.scrollWidth + " " + root.scrollHeight;
}};
</script>"""


def find_browser() -> str | None:
    """The path of a browser that can take pictures."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def size_of(browser: str, page: Path, width: int) -> tuple[int, int]:
    """The width and height in pixels that the page takes in a window of `width` pixels."""
    with tempfile.TemporaryDirectory() as folder:
        document = _run(browser, _frame(Path(folder), page, width, 1000), "--dump-dom", f"--window-size={max(width, 600)},1000")
    found = re.search(r"<title>(\d+) (\d+)</title>", document)
    if found is None:
        raise RuntimeError(f"{browser} could not measure {page}")
    return int(found[1]), int(found[2])


def take_pictures(browser: str, page: Path, out: Path) -> list[Path]:
    """Write the pictures; their paths.

    Raises:
        RuntimeError: the page is wider than a window, or the browser fails.
    """
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for device, width in WIDTHS.items():
        wide, high = size_of(browser, page, width)
        if wide > width:
            raise RuntimeError(f"{page} is {wide} pixels wide in a window of {width}")
        for shade in ("light", "dark"):
            target = out / f"{device}-{shade}.png"
            dark = (
                ("--blink-settings=preferredColorScheme=0",) if shade == "dark" else ("--blink-settings=preferredColorScheme=1",)
            )
            with tempfile.TemporaryDirectory() as folder:
                frame = _frame(Path(folder), page, width, high)
                _run(browser, frame, f"--screenshot={target}", f"--window-size={width},{high}", *dark)
            written.append(target)
    _run(browser, page.resolve().as_uri(), f"--print-to-pdf={out / 'print.pdf'}", "--no-pdf-header-footer")
    return [*written, out / "print.pdf"]


def _frame(folder: Path, page: Path, width: int, height: int) -> str:
    frame = folder / "frame.html"
    frame.write_text(FRAME.format(page=page.resolve().as_uri(), width=width, height=height), encoding="utf-8")
    return frame.as_uri()


def _run(browser: str, address: str, *flags: str) -> str:
    """Start the browser once, offline by its own switches, with a profile of its own; what it printed."""
    with tempfile.TemporaryDirectory() as profile:
        fixed = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--allow-file-access-from-files"]
        fixed += [f"--user-data-dir={profile}", "--no-first-run", "--disable-background-networking", "--virtual-time-budget=2000"]
        done = subprocess.run(
            [browser, *fixed, *flags, address], capture_output=True, text=True, timeout=SECONDS, check=False, errors="replace"
        )
    if done.returncode:
        raise RuntimeError(f"{browser} failed ({done.returncode}): {done.stderr[-500:]}")
    return done.stdout


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    browser = find_browser()
    if browser is None:
        print(f"no browser found. Fix: install one of {', '.join(BROWSERS)}", file=sys.stderr)
        return 2
    try:
        for path in take_pictures(browser, given.page, given.out):
            print(path)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
