"""Write the rows that the faults have measured into the table of a page, between its two marks."""

import pathlib
import sys

BEGIN = "<!-- faults: begin -->\n"
END = "<!-- faults: end -->\n"
HEAD = (
    "| fault | what the caller sees | what happens to the server | measured |\n"
    "| --- | --- | --- | ---: |\n"
)
# Above this, tenths of a second.
SECONDS_FROM_MS = 1000


def table(rows: list[tuple[str, str, str, int]]) -> str:
    """Give the table, by name; of a fault that was tried several times, the longest."""
    longest: dict[str, tuple[str, str, int]] = {}
    for name, saw, became, ms in rows:
        if name not in longest or longest[name][2] < ms:
            longest[name] = (saw, became, ms)
    return HEAD + "".join(
        f"| {name} | {saw} | {became} | {duration(ms)} |\n"
        for name, (saw, became, ms) in sorted(
            longest.items(), key=lambda row: row[0].strip("`").lower()
        )
    )


def duration(ms: int) -> str:
    """Give a duration for people."""
    return f"{ms} ms" if ms < SECONDS_FROM_MS else f"{ms / 1000:.1f} s"


def main(measured: str, page: str) -> None:
    """Put the table into the page."""
    lines = pathlib.Path(measured).read_text(encoding="utf-8").splitlines()
    rows = []
    for line in lines:
        name, saw, became, ms = line.split("\t")
        rows.append((name, saw, became, int(ms)))
    path = pathlib.Path(page)
    before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        sys.exit(f"{page} has no place for the table")
    path.write_text(before + BEGIN + table(rows) + END + after, encoding="utf-8")
    print(f"{len(rows)} faults measured, {page} written")


if __name__ == "__main__":
    main(*sys.argv[1:])
