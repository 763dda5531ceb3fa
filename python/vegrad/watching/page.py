"""The page of a run that goes on: what it shows, and the few lines of script that renew it."""

from __future__ import annotations

from vegrad.arrays.shown import escape
from vegrad.recordings.run import RunDiagnosis
from vegrad.reports import parts
from vegrad.reports.model_parts import training
from vegrad.reports.style import STYLE
from vegrad.runs.run import Run
from vegrad.watching.follower import Follower

SCRIPT = """
const live = document.getElementById("live"), state = document.getElementById("state");
const source = new EventSource("events");
source.onopen = () => { state.textContent = "live"; state.className = "good"; };
source.onerror = () => { state.textContent = "no connection"; state.className = "alarm"; };
source.onmessage = event => {
  const news = JSON.parse(event.data);
  document.title = news.title;
  live.innerHTML = news.body;
};
"""
OWN = """
#bar { display: flex; justify-content: space-between; gap: 16px; max-width: 1120px; margin: 0 auto;
  padding: 10px 20px; font-size: .9rem; }
#state { color: var(--mark); font-weight: 700; }
"""


def content(follower: Follower) -> tuple[str, str]:
    """Return the title of the page, and what it shows now, as HTML."""
    run, diagnosis = follower.run, follower.diagnosis
    if run is None or not run.steps:
        return "vegrad watch", parts.headed("warning", "waiting", follower.problem, "")
    step = f"step {run.step[-1]:.0f}"
    if diagnosis is None:
        return f"{step}: vegrad", f"{_unjudged(run)}<main>{training(run)}</main>"
    found = [_verdict(diagnosis, run), "<main>"]
    if diagnosis.findings:
        found.append(parts.findings(diagnosis))
    found += [training(run), "</main>"]
    return f"{diagnosis.verdict}, {step}: vegrad", "".join(found)


def _verdict(diagnosis: RunDiagnosis, run: Run) -> str:
    columns = {"loss": run.last("loss"), "gradient norm": run.last("gradient_norm")}
    now = ", ".join(f"{name} {value}" for name, value in columns.items() if value)
    now = f"step {run.step[-1]:.0f}: {now}"
    if not diagnosis.healthy:
        return parts.verdict(diagnosis, network=f"{diagnosis.head}; {now}")
    said = ("healthy", "nothing found so far", now, diagnosis.head)
    return parts.headed(*said, more=diagnosis.sentence, heading="h1")


def _unjudged(run: Run) -> str:
    why = "there is nothing in it that could be judged"
    return parts.headed("warning", "not judged", why, str(run.about.get("path", "")), heading="h1")


def document(title: str, body: str, nonce: str) -> str:
    """Write the whole page; its only script has the nonce."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}{OWN}</style>\n</head>\n<body>\n"
        '<div id="bar"><b>vegrad watch</b><span id="state" role="status">connecting</span></div>\n'
        f'<div id="live">{body}</div>\n<script nonce="{nonce}">{SCRIPT}</script>\n'
        "</body>\n</html>\n"
    )
