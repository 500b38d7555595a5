"""A run as a table for people and as JSON for programs."""

from __future__ import annotations

from typing import Any

from figures import FIGURES, LARGE, MEMORY, MIB, REFERENCE_NAMES, Figure, Samples, Summary

TIMES = "\N{MULTIPLICATION SIGN}"
_NOISE = """\
A `~` stands before what was held against a reference whose own quartiles are more than 30 % apart:
the machine had other things to do."""
_HEADINGS = ("", "median", "quartiles", "reference", "its median", "ratio", "quartiles", "promise")


def show(number: float, figure: Figure) -> str:
    """Write a sample of a figure with its unit."""
    if figure.relation == "rate":
        return f"{number / 1000:,.1f} k/s"
    if figure.section in {LARGE, MEMORY}:
        return f"{number / MIB:,.1f} MiB"
    for unit, size in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if abs(number) >= size:
            return f"{number / size:,.{1 if number < 100 * size else 0}f} {unit}"
    return f"{number:,.0f} ns"


def _relation(value: float, figure: Figure) -> str:
    if figure.relation == "more":
        return f"{'+' if value >= 0 else '-'}{show(abs(value), figure)}"
    return f"{value:.2f} {TIMES}"


def _promise(figure: Figure) -> str:
    if figure.limit is not None:
        return f"≤ {show(figure.limit, figure)}"
    if figure.promise is None:
        return ""
    if figure.relation == "more":
        return f"≤ +{show(figure.promise, figure)}"
    return f"{'≥' if figure.relation == 'rate' else '≤'} {figure.promise:g} {TIMES}"


def _verdict(figure: Figure, value: float, ours: float, *, noisy: bool) -> str:
    kept = figure.kept(value, ours)
    if kept is None:
        return ""
    return (", kept" if kept else ", **missed**") + ("?" if noisy else "")


def measured(figure: Figure, samples: Samples) -> bool:
    """Tell whether a run has what a figure needs."""
    return bool(samples.get(figure.subject)) and bool(samples.get(figure.reference))


def row(figure: Figure, samples: Samples) -> list[str]:
    """Give the cells of a figure."""
    ours = Summary.of(list(samples[figure.subject].values()))
    theirs = Summary.of(list(samples[figure.reference].values()))
    ratio = Summary.of(figure.values(samples))
    reference = figure.reference.split("/")[1].removesuffix(".cpu")
    mark = "~" if theirs.noisy else ""
    return [
        figure.what,
        show(ours.median, figure),
        f"{show(ours.low, figure)} to {show(ours.high, figure)}",
        REFERENCE_NAMES[reference],
        mark + show(theirs.median, figure),
        mark + _relation(ratio.median, figure),
        f"{_relation(ratio.low, figure)} to {_relation(ratio.high, figure)}",
        _promise(figure) + _verdict(figure, ratio.median, ours.median, noisy=theirs.noisy),
    ]


def table(samples: Samples, machine: dict[str, Any]) -> str:
    """Write a run as Markdown."""
    lines = [f"* {name}: {value}" for name, value in machine.items()]
    lines += [
        "",
        _NOISE,
    ]
    for section in dict.fromkeys(figure.section for figure in FIGURES):
        figures = [f for f in FIGURES if f.section == section and measured(f, samples)]
        if figures:
            rows = [row(figure, samples) for figure in figures]
            lines += ["", f"**{section}**", "", *_markdown([list(_HEADINGS), *rows])]
    return "\n".join(lines) + "\n"


def _markdown(rows: list[list[str]]) -> list[str]:
    widths = [max(3, *(len(line[n]) for line in rows)) for n in range(len(rows[0]))]
    lines = [
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return lines


def as_json(samples: Samples, machine: dict[str, Any]) -> dict[str, Any]:
    """Give a run as what JSON can hold: times in ns, memory in bytes, rates in calls a second."""
    figures = []
    for figure in FIGURES:
        if measured(figure, samples):
            ours = list(samples[figure.subject].values())
            ratio = Summary.of(figure.values(samples))
            figures.append(
                figure._asdict()
                | {
                    "subject_summary": Summary.of(ours)._asdict(),
                    "reference_summary": Summary.of(
                        list(samples[figure.reference].values())
                    )._asdict(),
                    "relation_summary": ratio._asdict(),
                    "kept": figure.kept(ratio.median, Summary.of(ours).median),
                }
            )
    return {
        "machine": machine,
        "figures": figures,
        "samples": {name: list(rounds.values()) for name, rounds in samples.items()},
    }
