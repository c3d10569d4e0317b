"""The page of a sweep, from its sweep.json: one table, the best run first, and what failed ones said last."""

import json
import math
from pathlib import Path

import jinja2
from markupsafe import Markup

from t_elaine import paths

TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Sweep {{ folder }}</title><style>{{ css }}</style></head>
<body><header><p class="over">T-ELAINE sweep</p><h1>{{ folder }}</h1>
<p class="lead">{{ runs|length }} runs, in order of <b>{{ metric }}</b> ({{ best }} first), as of each run's last
record. The mark stands between the lowest and the highest of them.</p></header>
<main><div class="scroll"><table>
<thead><tr>{% for name in settings %}<th class="text">{{ name }}</th>{% endfor %}<th>{{ metric }}</th><th></th>
{% if metric != "train/loss" %}<th>train/loss</th>{% endif %}<th>step</th><th>state</th></tr></thead>
{% for run in runs %}
<tr{% if loop.first and run.state == "finished" and run.metric is not none %} class="best"{% endif %}>
{% for name in settings %}<td class="text">{{ run["values"].get(name, "") }}</td>{% endfor %}
<td>{{ number(run.metric) }}</td>
<td>{% if run.metric is not none %}<svg width="120" height="20" style="width: 120px" role="img"
aria-label="{{ number(run.metric) }}">
<line x1="6" x2="114" y1="10" y2="10" stroke="var(--line)"/>
<circle cx="{{ 6 + 108 * place(run.metric) }}" cy="10" r="4" fill="var(--accent)"/></svg>{% endif %}</td>
{% if metric != "train/loss" %}<td>{{ number(run.loss) }}</td>{% endif %}
<td>{{ "–" if run.step is none else run.step }}</td>
<td><a class="state {{ run.state }}" href="{{ run.name|urlencode }}/" title="{{ run.name }}">{{ run.state }}</a></td>
</tr>
{% endfor %}
</table></div>
{% for run in runs if run.last_lines %}
<h2>{{ run.name }} ended with exit code {{ run.code }}</h2><pre>{{ run.last_lines }}</pre>
{% endfor %}
</main></body></html>
"""


def number(value: float | None) -> str:
    """Four digits, or a dash."""
    return "–" if value is None else f"{value:.4f}"


def write_sweep_page(folder: str) -> str:
    """Write sweep.html beside the folder's sweep.json; returns its path."""
    record = json.loads(paths.read_text(paths.join(folder, "sweep.json")))
    settings = list(dict.fromkeys(name for run in record["runs"] for name in run["values"]))
    known = [run["metric"] for run in record["runs"] if run["metric"] is not None and math.isfinite(run["metric"])]
    low, high = min(known, default=0.0), max(known, default=0.0)

    def place(value: float) -> float:
        return min(max((value - low) / (high - low), 0.0), 1.0) if high > low and math.isfinite(value) else 0.5

    made = jinja2.Environment(autoescape=True).from_string(TEMPLATE)
    css = Markup((Path(__file__).parent / "page.css").read_text(encoding="utf-8"))
    text = made.render(folder=folder, settings=settings, css=css, number=number, place=place, **record)
    path = paths.join(folder, "sweep.html")
    paths.write_text(path, text)
    return path
