"""A page opened in a real headless browser: what does not fit, which plots are empty, whether scripts have glyphs."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

# Details stand open, so that what they hold is measured too. A glyph that no font has is drawn as the box that stands
# for U+FFFFE, of which there is none.
FRAME = """<body><iframe id="f" src="{page}" style="width:{width}px;height:900px"></iframe><script>
onload = () => {{ const d = document.getElementById("f").contentDocument;
  d.querySelectorAll("details").forEach(e => e.open = true);
  const wide = [...d.querySelectorAll("main *")].filter(e => e.getBoundingClientRect().right > {width} + 1
    && !e.closest(".scroll, pre")).map(e => e.tagName + "." + e.className);
  const blank = [...d.querySelectorAll("svg")].filter(e => e.getBoundingClientRect().height < {least}).length;
  const cut = [...d.querySelectorAll("svg")].flatMap(s => [...s.querySelectorAll("text")].filter(t =>
    t.getBoundingClientRect().left < s.getBoundingClientRect().left - 1)).map(t => t.textContent);
  const c = document.createElement("canvas"), g = c.getContext("2d", {{willReadFrequently: true}}), drawn = new Map();
  const draw = (text, font) => {{ const key = text + font; if (!drawn.has(key)) {{ c.width = c.height = 40;
    g.font = "24px " + font; g.fillText(text, 4, 30); drawn.set(key, c.toDataURL()); }} return drawn.get(key); }};
  const tofu = [...d.querySelectorAll("[lang=ja], [lang=zh]")].filter(e => {{
    const font = getComputedStyle(e).fontFamily, none = draw("\\u{{FFFFE}}", font);
    return [...new Set(e.textContent.match(/[\\u3040-\\u30ff\\u4e00-\\u9fff]/g) || [])].slice(0, 9)
      .some(x => draw(x, font) === none); }}).map(e => e.textContent.slice(0, 20));
  const tiles = [...d.querySelectorAll(".tiles div")].reduce((sum, e) => sum + e.offsetWidth * e.offsetHeight, 0);
  const all = d.querySelector(".tiles");
  document.body.dataset.result = JSON.stringify({{width: d.documentElement.scrollWidth, wide, blank, cut, tofu,
    covered: all ? tiles / (all.clientWidth * all.clientHeight) : 1, text: d.body.innerText,
    plots: d.querySelectorAll("svg").length}}); }};
</script></body>"""


def opened(page: Path, folder: Path, width: int, least: int = 80) -> dict[str, Any]:
    """What a browser finds on a page.

    Args:
        page: the HTML file, in `folder`.
        folder: for the frame and the browser's profile.
        width: of the window.
        least: height below which a plot is called blank.

    Returns:
        {"width" of all, "wide": elements beyond the window, "blank": plots, "cut": labels outside of their plot,
        "tofu": Japanese and Chinese without glyphs, "covered": share of the tiles' area, "text", "plots"}.
    """
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next((path for name in names if (path := shutil.which(name))), None)
    if browser is None:
        pytest.skip("no chromium on this machine")
    frame = folder / f"frame-{width}.html"
    frame.write_text(FRAME.format(page=page.name, width=width, least=least), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    flags += ["--virtual-time-budget=5000", f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr"]
    done = subprocess.run([browser, *flags, "--dump-dom", frame.as_uri()], capture_output=True, text=True, timeout=300)
    found = re.search(r'data-result="([^"]*)"', done.stdout)
    assert found, done.stderr[-2000:]
    assert "Content Security Policy" not in done.stderr, "the page asked for something"
    result: dict[str, Any] = json.loads(found.group(1).replace("&quot;", '"').replace("&amp;", "&"))
    return result
