"""`python -m veneer`: the command line."""

from __future__ import annotations

from veneer.cli import main

if __name__ == "__main__":
    main()
