"""The figures of the zoo, and its misses with a reason for each."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np

Record = dict[str, Any]

# The kinds of finding that are right for each label; one of them must be there. A dead or saturated
# layer explains a gradient that vanishes below it; a strong layer saturates bounded activations.
RIGHT = {
    "vanishing": {"vanishing", "dead", "saturated"},
    "exploding": {"exploding", "nonfinite"},
    "weak": {"vanishing"},
    "strong": {"exploding", "saturated", "nonfinite"},
    "dead": {"dead"},
    "biased": {"saturated", "dead"},
    "data": {"exploding", "saturated", "nonfinite"},
}
PLANTED = ("weak", "strong", "dead", "biased")
CHAINS = ("vanishing", "exploding")
HISTORY = {"overshooting", "stalled", "oscillating"}


def tuning(record: Record) -> bool:
    """Tell if thresholds may be tuned on a record, as on every other pair of numbers."""
    return record["number"] // 2 % 2 == 0


def right(record: Record, limit: float | None = None) -> bool:
    """Tell if vegrad's verdict fits the label, with another limit of a chain if one is given."""
    kinds = {finding["kind"] for finding in record["findings"]}
    if limit is not None:
        kinds = {f["kind"] for f in record["findings"] if f["decades"] is None}
        chains = [f["decades"] for f in record["findings"] if f["decades"] is not None]
        for decades in (*chains, record["trend"] or 0.0):
            if abs(decades) >= limit:
                kinds.add("exploding" if decades > 0 else "vanishing")
    if record["label"] == "healthy":
        return not kinds
    if record["label"] == "rate":  # the gradient is healthy, the history is not
        return not kinds and bool(HISTORY & set(record.get("history", ())))
    return bool(kinds & RIGHT[record["label"]])


def named(record: Record) -> bool:
    """Tell if a finding names the planted layer, alone or as the worst."""
    layer = record["specimen"]["fault"]["layer"]
    return any(f["layers"] == [layer] or f["worst"] == layer for f in record["findings"])


def peer_right(record: Record, peer: str, when: int) -> bool:
    """Tell if a peer's verdict fits the label, before training (0) or after it (1)."""
    verdict = record["peers"][when][peer]
    if record["label"] == "healthy":
        return bool(verdict == "healthy")
    return verdict in RIGHT[record["label"]]


def limits(records: list[Record]) -> list[tuple[str, ...]]:
    """Return right verdicts and false alarms in the half for tuning, by the limit of a chain."""
    clear = [r for r in records if r["label"] != "unclear" and tuning(r)]
    healthy = [r for r in clear if r["label"] == "healthy"]
    rows = []
    for limit in (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0):
        alarms = f"{sum(not right(r, limit) for r in healthy)} of {len(healthy)}"
        rows.append((f"{limit:g} decades", share([right(r, limit) for r in clear]), alarms))
    return rows


def unclear(records: list[Record]) -> str:
    """Say why specimens are in no figure, and how many of them vegrad calls sick."""
    left = [r for r in records if r["label"] == "unclear"]
    fault = [r for r in left if r["reached"] and r["specimen"]["fault"] is not None]
    trains = [r for r in left if r["reached"] and r["specimen"]["fault"] is None]
    said = sum(bool(r["findings"]) for r in trains)
    rest = len(left) - len(fault) - len(trains)
    return (
        f"{len(left)} are in no figure: {len(trains)} train although δ of a layer is more than "
        f"3 decades from the last layer's (vegrad calls {said} of them sick: false alarms, if "
        f"training alone decides), {len(fault)} train in spite of their fault, {rest} do not train "
        "and neither a fault nor the gradient says why."
    )


def trainable(records: list[Record]) -> list[tuple[str, ...]]:
    """Count the networks without a fault that train, by how far δ strays from the last layer's."""
    rows = []
    edges = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 10.0, np.inf)
    plain = [r for r in records if r["specimen"]["fault"] is None]
    for low, high in pairwise(edges):
        row = [f"{low:g} to {high:g}"]
        for optimizer in ("sgd", "adam"):
            inside = [
                r["reached"]
                for r in plain
                if low <= _far(r) < high and r["specimen"]["optimizer"]["name"] == optimizer
            ]
            row.append(f"{sum(inside)} of {len(inside)}")
        rows.append(tuple(row))
    return rows


def _far(record: Record) -> float:
    low, high = (abs(d) if d is not None else np.inf for d in record["decades"])
    return max(low, high)


def share(answers: list[bool]) -> str:
    """Format a share, as in "97.3 % (73 of 75)"."""
    count = sum(answers)
    return f"{100 * count / len(answers):.1f} % ({count} of {len(answers)})" if answers else "–"


def figures(records: list[Record]) -> list[tuple[str, str, str]]:
    """Return the name, the measured and the asked value of every figure."""
    clear = [r for r in records if r["label"] != "unclear"]
    healthy = [r for r in clear if r["label"] == "healthy"]
    treated = [r for r in clear if "cure" in r]
    costs = [r["cure"]["cost"] for r in treated]

    def cured(*labels: str) -> str:
        return share([r["cure"]["cured"] for r in treated if r["label"] in labels])

    within = [(r["within"], r["specimen"]["depth"] - 1) for r in records if "within" in r]
    inside = sum(part * count for part, count in within) / max(sum(n for _, n in within), 1)
    alarms = [not right(r) for r in healthy]
    return [
        ("right verdict", share([right(r) for r in clear]), "99 %"),
        ("false alarms on healthy networks", f"{sum(alarms)} of {len(alarms)}", "0"),
        (
            "planted fault: right layer named",
            share([named(r) for r in clear if r["label"] in PLANTED]),
            "95 %",
        ),
        ("cured: vanishing", cured("vanishing", "weak", "dead", "biased"), "97 %"),
        ("cured: exploding", cured("exploding", "strong"), "97 %"),
        ("cured: data times 100", cured("data"), ""),
        ("cured: learning rate times 1000 or 1/10000", cured("rate"), ""),
        ("cost of a cure, in trainings: mean", f"{np.mean(costs):.2f}" if costs else "–", "1.5"),
        ("cost of a cure: largest", f"{max(costs):.2f}" if costs else "–", "1.5"),
        (
            "gains within two stated spreads, width ≥ 128",
            f"{100 * inside:.1f} % of {len(within)} networks' layers" if within else "–",
            "95 %",
        ),
    ]


def peers(records: list[Record]) -> list[tuple[str, ...]]:
    """Return a row for each tool: right verdicts and false alarms before and after training."""
    base = [r for r in records if r["label"] not in ("unclear", "rate")]
    healthy = [r for r in base if r["label"] == "healthy"]
    alarms = f"{sum(not right(r) for r in healthy)} of {len(healthy)}"
    rows = [("vegrad", share([right(r) for r in base]), alarms, "–", "–")]
    for peer in base[0]["peers"][0] if base else ():
        row = [peer]
        for when in (0, 1):
            wrong = sum(not peer_right(r, peer, when) for r in healthy)
            row += [share([peer_right(r, peer, when) for r in base]), f"{wrong} of {len(healthy)}"]
        rows.append(tuple(row))
    return rows


def described(record: Record) -> str:
    """Describe a specimen in some words."""
    s = record["specimen"]
    fault = s["fault"]
    planted = f", {fault['kind']} {fault['factor']:g}" if fault else ""
    planted += f" in layer {fault['layer']}" if fault and fault["layer"] is not None else ""
    more = f", σ_w {s['sigma_w']:.2f}" if s["sigma_w"] else ""
    more += f", norm {s['norm']}" if s["norm"] else ""
    more += ", residual" if s["residual"] else ""
    return (
        f"{s['depth']}×{s['width']} {s['activation']} {s['init']}{more} on {s['data']}, "
        f"{s['optimizer']['name']} {s['optimizer']['lr']:g}{planted}"
    )


def misses(records: list[Record]) -> list[tuple[str, ...]]:
    """Return number, kind of miss, specimen, and the reason as far as figures tell it."""
    rows = []
    for r in records:
        if r["label"] == "unclear":
            continue
        number = str(r["number"])
        about = described(r)
        said = ", ".join(f["kind"] for f in r["findings"]) or "healthy"
        low, high = r["decades"]
        if not right(r):
            history = f", history {', '.join(r['history']) or 'nothing'}" if "history" in r else ""
            why = f"{r['label']}, said {said}{history}; "
            why += f"δ from 1e{low:.1f} to 1e{high:+.1f} of the last"
            rows.append((number, "verdict", about, why))
        elif r["label"] in PLANTED and not named(r):
            layers = "; ".join(str(f["layers"]) for f in r["findings"])
            rows.append((number, "layer", about, f"said {said} in {layers}"))
        if "cure" in r and not r["cure"]["cured"]:
            c = r["cure"]
            end = "nan" if c["score"] is None else f"{c['score']:.3g}"
            row = (
                number,
                "cure",
                about,
                f"score {end} after it, cost {c['cost']:.2f}, {len(c['tried'])} tried; "
                f"{c['change']}",
            )
            rows.append(row)
    return rows


def markdown(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Render a table in Markdown."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


SPREADS = ("networks", "gains", "within 1", "within 2", "mean", "std")


def spread_row(name: str, several: list[np.ndarray]) -> tuple[str, ...]:
    """Return a row of the tables of spreads: name and `SPREADS` of several networks' deviations."""
    apart = np.concatenate(several)
    if not len(apart):
        return ()
    within = [f"{100 * np.mean(np.abs(apart) <= limit):.1f} %" for limit in (1, 2)]
    counts = (str(len(several)), str(len(apart)))
    return (name, *counts, *within, f"{np.mean(apart):+.2f}", f"{np.std(apart):.2f}")


def tables(records: list[Record], seed: int) -> str:
    """Render all figures and misses in Markdown."""
    labels = Counter(r["label"] for r in records)
    halves = [[r for r in records if tuning(r) == half] for half in (False, True)]
    counts = ", ".join(f"{count} {name}" for name, count in labels.most_common())
    columns = map(figures, (*halves, records))
    rows = [
        (name, held, tuned, both, asked)
        for (name, held, asked), (_, tuned, _), (_, both, _) in zip(*columns, strict=True)
    ]
    everyone = peers(halves[0])
    asked = ("figure", "not used for tuning", "used for tuning", "both", "at least")
    said = ("tool", "right before", "false alarms", "right after", "false alarms")
    minutes = sum(r["seconds"] for r in records) / 60
    parts = [
        f"Zoo of seed {seed}: {len(records)} networks ({counts}); {minutes:.0f} minutes of one "
        "core. Half of the pairs of numbers are for tuning.",
        markdown(asked, rows),
        "The same labels but those of the learning rate, half not used for tuning; peers on the "
        "reference's gradients, before and after its training:",
        markdown(said, everyone),
        unclear(records),
        "Networks without a fault that a plain training brings to its target, by the decades that "
        "δ strays from the last layer's:",
        markdown(("decades", "SGD", "Adam"), trainable(records)),
        "What other limits of a chain than 3 decades would make of the half for tuning:",
        markdown(("limit", "right verdict", "false alarms"), limits(records)),
        "Misses (both halves):",
        markdown(("number", "miss", "network", "reason"), misses(records)),
    ]
    return "\n\n".join(parts)
