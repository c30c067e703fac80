"""Print the packages of a pip report with version and size: python sizes.py REPORT.

REPORT is the file of `pip install --dry-run --report`. Sizes are those of the files to fetch.
"""

import json
import sys
import urllib.parse
import urllib.request
from pathlib import Path

TIMEOUT_S = 10


def size(url: str) -> int:
    """Return the size of a file in bytes; 0 if its server does not state it."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "file":
        return Path(urllib.request.url2pathname(parts.path)).stat().st_size
    try:
        request = urllib.request.Request(url, method="HEAD")  # noqa: S310 - an address that pip chose
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310
            return int(answer.headers.get("Content-Length", 0))
    except (OSError, ValueError):
        return 0


def main() -> None:
    """Print one row for each package and the sum."""
    report = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    rows = []
    for entry in report["install"]:
        name = f"{entry['metadata']['name']} {entry['metadata']['version']}"
        rows.append((name, size(entry["download_info"]["url"])))
    for name, length in sorted(rows, key=lambda row: row[0].lower()):
        print(f"     {name:<50} {f'{length / 1e6:8.2f} MB' if length else 'unknown size'}")
    unknown = "" if all(length for _, length in rows) else ", and those of unknown size"
    print(f"     {len(rows)} packages, {sum(length for _, length in rows) / 1e6:.0f} MB to fetch{unknown}")


main()
