"""The page of a sweep, from its sweep.json: one table, the best run first, and what failed ones said last."""

import json

import jinja2

from t_elaine import paths

TEMPLATE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Sweep {{ folder }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; } th, td { padding: .3rem .8rem; text-align: left; border-bottom: 1px solid #ddd; }
td.number { text-align: right; font-variant-numeric: tabular-nums; } tr.best { background: #eef6ee; }
pre { background: #f6f6f6; padding: .8rem; overflow-x: auto; } .failed { color: #a00; }
</style>
<h1>Sweep {{ folder }}</h1>
<p>{{ runs|length }} runs, in order of <b>{{ metric }}</b> ({{ best }} first), as of each run's last record.</p>
<table>
<tr>{% for name in settings %}<th>{{ name }}</th>{% endfor %}<th>{{ metric }}</th><th>train/loss</th><th>step</th>
<th>state</th><th>run</th></tr>
{% for run in runs %}
<tr{% if loop.first and run.state == "finished" and run.metric is not none %} class="best"{% endif %}>
{% for name in settings %}<td>{{ run["values"].get(name, "") }}</td>{% endfor %}
{% for key in ("metric", "loss", "step") %}
<td class="number">{{ "–" if run[key] is none else run[key]|round(4) if key != "step" else run[key] }}</td>{% endfor %}
<td class="{{ run.state }}">{{ run.state }}</td><td><a href="{{ run.name|urlencode }}/">{{ run.name }}</a></td></tr>
{% endfor %}
</table>
{% for run in runs if run.last_lines %}
<h2 class="failed">{{ run.name }} ended with exit code {{ run.code }}</h2><pre>{{ run.last_lines }}</pre>
{% endfor %}
</html>
"""


def write_sweep_page(folder: str) -> str:
    """Write sweep.html beside the folder's sweep.json; returns its path."""
    record = json.loads(paths.read_text(paths.join(folder, "sweep.json")))
    settings = list(dict.fromkeys(name for run in record["runs"] for name in run["values"]))
    made = jinja2.Environment(autoescape=True).from_string(TEMPLATE)
    path = paths.join(folder, "sweep.html")
    paths.write_text(path, made.render(folder=folder, settings=settings, **record))
    return path
