"""The figures of `explanation/truth.md`, from the files that the benchmarks wrote.

The page holds them, so that who reads its source sees them too: what stands between
`<!-- figures: NAME -->` and `<!-- end -->` is a row of `PARTS`. `python docs/_ext/figures.py`
writes them anew, and a test compares.
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

BENCH = Path(__file__).parents[2] / "bench"
RESULTS = BENCH / "results"
PAGE = Path(__file__).parents[1] / "explanation" / "truth.md"
MARKED = re.compile(r"(?<=<!-- figures: )(\w+) -->\n.*?(?=<!-- end -->)", re.DOTALL)
TORCH = {  # figures of trainings_torch.json: its name, the part of it, and what is asked
    "healthy trainings with an alarm": ("healthy", "all", "≤ 1 %"),
    "sick trainings whose report names the kind first": ("sick", "all", "≥ 95 %"),
    "of them vanishing": ("sick", "vanishing", "–"),
    "of them exploding": ("sick", "exploding", "–"),
    "of them dead": ("sick", "dead", "–"),
    "of them rate × 100": ("sick", "rate ×100", "–"),
    "of them rate ÷ 1000": ("sick", "rate ÷1000", "–"),
    "of them data × 100": ("sick", "data ×100", "–"),
    "divergences foretold 5 steps before the loss has doubled": ("coming", "all", "≥ 70 %"),
    "of them with a constant rate": ("coming", "rate", "–"),
    "of them with a warm-up": ("coming", "warm-up", "–"),
    "of them with β₂ = 0.9999": ("coming", "β₂", "–"),
    "of them in float16": ("coming", "float16", "–"),
    "of them with a bad batch alone": ("coming", "bad batch", "–"),
}


def zoo() -> Iterator[str]:
    """Give the zoo's figures, a column for each seed."""
    seeds = {seed: tables[0] for seed, tables in _seeds().items()}
    yield _row(["figure", *(f"seed {seed}" for seed in seeds), "asked"])
    yield _row(["---"] * (len(seeds) + 2))
    for place, (name, *_, asked) in list(enumerate(next(iter(seeds.values()))))[1:]:
        yield _row([name, *(_short(table[place][3]) for table in seeds.values()), asked])


def peers() -> Iterator[str]:
    """Give what the rules of other tools say of the last seed."""
    head, *rows = next(iter(_seeds().values()))[1]
    yield from (_row(head), _row(["---"] * len(head)))
    yield from (_row([_short(cell) for cell in row]) for row in rows)


def models() -> Iterator[str]:
    """Give the figures of public models."""
    yield from _parts(RESULTS / "models.md")[0]


def libraries() -> Iterator[str]:
    """Give the same by library."""
    yield from _parts(RESULTS / "models.md")[1]


def trainings() -> Iterator[str]:
    """Give the figures of trainings of vegrad.MLP, and what is in none of them."""
    found = json.loads((RESULTS / "trainings.json").read_text(encoding="utf-8"))
    yield from (f"{found['date']}, {found['half']} half, vegrad.MLP.", "")
    yield from (_row(["figure", "trainings", "share", "asked"]), "|---|--:|--:|--:|")
    for one in found["lines"]:
        asked = f"{'≤' if one['most'] else '≥'} {100 * one['asked']:g} %"
        share = f"{one['hits']} of {one['count']}: {100 * one['share']:.1f} %"
        yield _row([one["name"], str(one["count"]), share, asked if _is_asked(one) else "–"])
    yield ""
    for one in filter(_is_asked, found["lines"]):
        for why, count in one["left_out"].items():
            yield f"- {one['name']}: {count} left out ({why})"


def trainings_torch() -> Iterator[str]:
    """Give the figures of trainings of PyTorch models."""
    text = (RESULTS / "trainings_torch.json").read_text(encoding="utf-8")
    figures = json.loads(text)["figures"]
    yield from (_row(["figure", "all", "held out", "asked"]), "|---|--:|--:|--:|")
    for name, (what, part, asked) in TORCH.items():
        hits, count = figures[what][part]
        every, held = f"{hits} of {count}", "–"
        if part == "all":
            every += f": {100 * hits / count:.1f} %"
            hits, count = figures[what]["held"]
            held = f"{hits} of {count}: {100 * hits / count:.1f} %"
        yield _row([name, every, held, asked])


def field() -> Iterator[str]:
    """Give what is said of reported troubles and of published faults, in a sentence."""
    text = (BENCH / "field" / "README.md").read_text(encoding="utf-8")
    now = r"- the rebuilt version \(([\d-]+).*?\): "
    told = re.search(
        now + r"(\d+) of (\d+) told right, (\d+) began with a false cause, (\d+) alarms", text
    )
    known = re.search(
        now + r"(\d+) of (\d+) found, (\d+) with .*, (\d+) false alarms on (\d+) healthy", text
    )
    when, right, cases, wrong, alarms = told.groups()
    _, found, faults, first, false, healthy = known.groups()
    yield f"Of {cases} troubles that people reported in public, rebuilt in a few lines each, the"
    yield f"version of {when} tells {right} right, begins with a false cause in {wrong}, and raises"
    yield f"{alarms} alarms on the mended programs; of {faults} faulty networks of the kinds that"
    yield f"published sets hold it finds {found}, {first} of them with an accepted cause first, and"
    yield f"it raises {false} alarms on {healthy} healthy ones: [case by case](field.md)."


PARTS: dict[str, Callable[[], Iterator[str]]] = {
    part.__name__: part
    for part in (zoo, peers, models, libraries, trainings, trainings_torch, field)
}


def _is_asked(line: dict[str, object]) -> bool:
    return bool(line["asked"] or line["most"])


def _seeds() -> dict[str, list[list[list[str]]]]:
    """Return the tables of each seed of the zoo, as cells, the last seed first."""
    parts = re.split(
        r"^## Seed (\d+)$", (RESULTS / "zoo.md").read_text(encoding="utf-8"), flags=re.M
    )
    return dict(zip(parts[1::2], map(_tables, parts[2::2]), strict=True))


def _tables(text: str) -> list[list[list[str]]]:
    lines = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    cells = [[row[2:-2].split(" | ") for row in one.splitlines()] for one in lines]
    return [[one[0], *one[2:]] for one in cells]


def _parts(path: Path) -> list[list[str]]:
    """Return the tables of a document, as lines."""
    lines = re.findall(r"(?:^\|.*\n)+", path.read_text(encoding="utf-8"), re.MULTILINE)
    return [one.splitlines() for one in lines]


def _short(cell: str) -> str:
    return re.sub(r" \((\d+) of (\d+)\)", r", \1/\2", cell).removesuffix(" networks' layers")


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def written(text: str) -> str:
    """Return a page with its figures made anew."""
    return MARKED.sub(lambda m: f"{m[1]} -->\n\n" + "\n".join(PARTS[m[1]]()) + "\n\n", text)


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
