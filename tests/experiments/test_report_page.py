"""The page as a browser shows it: nothing fails, every number is drawn, nothing is fetched."""

import html
import re
import shutil
import subprocess

import matplotlib.image
import numpy as np
import pytest

from experiments.report.__main__ import main
from tests.experiments.runs import leave

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="needs a browser: apt-get install chromium, as .ci/run does"
)

SPANS = [
    (f"replica/{r}", "compute", i + r / 2, i + r / 2 + 0.7) for r in range(2) for i in range(19)
]
SPANS += [("shard/0", "apply", i + 0.8, i + 0.9) for i in range(19)]
HISTOGRAM = {0: 10, 1: 60, 2: 8, 3: 2}
FRAMES = "<script>requestAnimationFrame = (draw) => setTimeout(draw);</script>"
PROBE = """
<script>
addEventListener("load", () => setTimeout(() => {
  const canvas = document.querySelector("#timeline canvas"), box = canvas.getBoundingClientRect();
  const read = () => canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  const before = read(), found = { drawn: before.filter((value) => value).length };
  const point = { clientX: box.left + 300, clientY: box.top + 30, bubbles: true, cancelable: true };
  canvas.dispatchEvent(new PointerEvent("pointermove", point));
  found.tip = document.querySelector(".tip")?.textContent;
  canvas.dispatchEvent(new WheelEvent("wheel", { ...point, deltaY: -900 }));
  document.querySelector("input[value=examples]").click();
  requestAnimationFrame(() => setTimeout(() => {
    const after = read();
    found.zoomed = after.some((value, i) => value !== before[i]);
    const said = { id: "found", textContent: JSON.stringify(found) };
    document.body.append(Object.assign(document.createElement("pre"), said));
  }));
}, 500));
</script>
"""


def browse(path, *arguments, tmp_path):
    """What the browser says of a page."""
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
        f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", *arguments,
        path.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


def dom(path, tmp_path):
    """After all scripts. A browser without a screen draws no frames of its own accord."""
    timed = tmp_path / "timed.html"
    timed.write_text(path.read_text().replace("<head>", f"<head>{FRAMES}", 1))
    return browse(timed, "--dump-dom", "--window-size=1200,2000", tmp_path=tmp_path)


def errors(page):
    return html.unescape(re.search(r'<pre id="errors"[^>]*>(.*?)</pre>', page, re.DOTALL)[1])


def shown(page):
    """What a reader sees: scripts and data have the same words."""
    return page[page.index("<main") : page.index("</main>")]


def bars(page):
    return len(re.findall(r'<rect class="bar"', page))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The page of one run."""
    path = tmp_path_factory.mktemp("report")
    leave(path / "run", spans=SPANS, histogram=HISTOGRAM)
    assert main([str(path / "run"), f"--out={path / 'page.html'}"]) == 0
    return path / "page.html"


def test_everything_is_drawn(written, tmp_path):
    page = dom(written, tmp_path)
    assert errors(page) == ""
    assert 'data-drawn="all"' in page
    assert bars(page) == len(HISTOGRAM)
    words = shown(page)
    for text in ("Accuracy", "Training loss", "Staleness of pushes", "Version skew of the shards",
                 "Busy share over time", "Total busy share", "Total bytes by kind",
                 "Timeline: who did what when", "Fields that differ from their defaults.",
                 "2,560", "80 pushes.", "measured mean 1.025", "always M - 1 = 1",
                 "66.5 %", "57 spans, none left out."):  # fmt: skip
        assert text in words, text
    paths = re.findall(r'<path d="([^"]*)"', words)
    assert len(paths) == 10  # two accuracies, loss, updates, law, skew, two busy, two of bytes
    assert all(path.startswith("M") and "NaN" not in path for path in paths)


def test_it_answers_to_wheel_pointer_and_switch(written, tmp_path):
    probed = tmp_path / "probed.html"
    probed.write_text(written.read_text().replace("</body>", f"{PROBE}</body>"))
    page = dom(probed, tmp_path)
    assert errors(page) == ""
    found = html.unescape(re.search(r'<pre id="found">(.*?)</pre>', page)[1])
    assert '"zoomed":true' in found
    assert "replica/0: compute" in found
    assert int(re.search(r'"drawn":(\d+)', found)[1]) > 5_000  # pixels
    assert "training examples" in shown(page)


@pytest.mark.parametrize("break_it", [("function histogram(", "function gone("),
                                      ("= run.staleness", "= run.nothing")])  # fmt: skip
def test_a_page_that_fails_says_so(break_it, written, tmp_path):
    broken = tmp_path / "broken.html"
    text = written.read_text().replace(*break_it)
    assert text != written.read_text()
    broken.write_text(text)
    page = dom(broken, tmp_path)
    assert "failed to draw" in errors(page)
    assert 'data-drawn="all"' not in page
    assert bars(page) == 0


@pytest.mark.parametrize("width", [400, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_screenshot_shows_it(width, scheme, written, tmp_path):
    browse(
        written, f"--screenshot={tmp_path / 'shot.png'}", f"--window-size={width},3000",
        f"--blink-settings=preferredColorScheme={int(scheme == 'light')}", tmp_path=tmp_path,
    )  # fmt: skip
    image = matplotlib.image.imread(tmp_path / "shot.png")[..., :3]
    colors, counts = np.unique((image * 255).astype(int).reshape(-1, 3), axis=0, return_counts=True)
    ground = colors[counts.argmax()].mean()
    assert (ground > 200) if scheme == "light" else (ground < 60)
    assert counts.max() < 0.9 * counts.sum()  # not blank
    blue = {"light": (0, 0x67, 0xAB), "dark": (0x5C, 0xB0, 0xF0)}[scheme]
    assert counts[(colors == blue).all(axis=1)].sum() > 1_000  # curves and computing


def test_a_label_cannot_become_markup(tmp_path):
    evil = tmp_path / "<script>boom()<" / "script><img src=x onerror=boom()>"
    other = tmp_path / "other" / evil.name
    leave(evil, spans=SPANS, histogram=HISTOGRAM)
    leave(other, ended=False)
    assert main([str(evil), str(other), f"--out={tmp_path / 'page.html'}"]) == 0
    page = dom(tmp_path / "page.html", tmp_path)
    assert errors(page) == ""
    words = shown(page)
    assert "<img" not in words
    assert "<script" not in words
    assert "&lt;script&gt;boom()&lt;/script&gt;" in words
    assert "has not ended" in words


def test_nothing_is_fetched(written):
    text = written.read_text()
    addresses = set(re.findall(r"https?://[^\"'\s]+", text))
    assert addresses <= {"http://www.w3.org/2000/svg"}  # the name of a format
    assert not re.search(r"<link|<script[^>]* src=|@import|url\(|fetch\(|XMLHttpRequest", text)
    assert written.stat().st_size < 3e6


def test_a_hundred_thousand_spans_are_drawn_in_a_small_page(tmp_path):
    many = [(f"replica/{i % 50}", "compute", i // 50 / 100, i // 50 / 100 + 0.006)
            for i in range(100_000)]  # fmt: skip
    leave(tmp_path / "run", spans=many)
    assert main([str(tmp_path / "run")]) == 0
    path = tmp_path / "run" / "report.html"
    assert path.stat().st_size < 3e6
    page = dom(path, tmp_path)
    assert errors(page) == ""
    assert "100,000 spans, none left out." in shown(page)
    assert "data-frame-ms" in page
