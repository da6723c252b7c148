"""The page in a real browser, at the width of a desk and of a phone; and its colours."""

import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from manta.server.app import PAGE

WIDTHS = {"desk": (1280, 900, "light"), "phone": (390, 844, "dark")}
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))), None
)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(params=WIDTHS)
def page(request, browser, served) -> Iterator[Any]:
    width, height, scheme = WIDTHS[request.param]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    context.set_default_timeout(60_000)
    opened, wrong = context.new_page(), []
    refused = "the server responded with a status of 400"  # a browser says so of each, and the page tells why
    opened.on("console", lambda m: wrong.append(m.text) if m.type == "error" and refused not in m.text else None)
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("request", lambda asked: None if asked.url.startswith((served.url, "blob:")) else wrong.append(asked.url))
    opened.goto(served.url)
    opened.wait_for_selector("#voices input")
    yield opened
    assert opened.evaluate("document.documentElement.scrollWidth <= innerWidth"), "it scrolls sideways"
    context.close()
    assert not wrong


def write(page: Any) -> list[str]:
    """Press the button, and wait for the texts."""
    page.click("#go")
    page.wait_for_selector("#save")
    return [canvas.inner_text() for canvas in page.query_selector_all(".canvas")]


@needs_browser
def test_every_feature_is_clicked_through(page, served, tmp_path):
    # Writing, side by side: each text is that of its seed.
    page.click("#more summary")
    page.fill("#seed", "3")
    page.fill("#options [name=num_steps]", "4")
    names = [label.inner_text() for label in page.query_selector_all("#voices label")]
    assert len(names) == 3
    texts = write(page)
    body = {"prompt": page.input_value("#prompt"), "seed": 3, "num_steps": 4}
    own = served.post("/v1/completions", **body).json()["choices"][0]["text"]
    aligned = served.post("/v1/completions", model="builtin:e2e-aligned", **body).json()["choices"][0]["text"]
    assert texts[:2] == [own, aligned] and "4 calls" in page.inner_text(".facts")
    # The slider goes back to any call, and playing goes through them.
    slider = page.query_selector(".scrub input")
    slider.focus()
    page.keyboard.press("Home")
    first = page.inner_text(".canvas")
    assert first != own and "2 calls" in page.inner_text(".scrub output")
    page.keyboard.press("End")
    assert page.inner_text(".canvas") == own
    page.click(".scrub button")
    page.wait_for_selector(".result:first-child .scrub button:text-is('Pause')")
    page.wait_for_selector(".result:first-child .scrub button:text-is('Play')")
    assert page.inner_text(".canvas") == own
    levels = {name for word in page.query_selector_all(".word") for name in word.get_attribute("class").split()}
    assert any(re.fullmatch(r"c\d", name) for name in levels)
    # The replay is one file that needs nothing else.
    with page.expect_download() as saved:
        page.click("#save")
    file = tmp_path / "replay.html"
    saved.value.save_as(file)
    alone = page.context.new_page()
    alone.goto(file.as_uri())
    assert [canvas.inner_text() for canvas in alone.query_selector_all(".canvas")] == texts
    alone.close()
    assert "http" not in re.sub(r"http://www\.w3\.org/\S+", "", file.read_text(encoding="utf-8"))
    # Filling blanks, and editing.
    page.click("#tab-fill")
    page.fill("#text", "The ___ is near the ___.")
    assert all(re.fullmatch(r"The .* is near the .*\.", text) for text in write(page)[:1])
    page.click("#tab-edit")
    page.fill("#text", "The Mill is a [[cheap pub]] by the river.")
    page.fill("#strength", "0.9")
    [edited] = write(page)
    assert edited.startswith("The Mill is a ") and edited.endswith(" by the river.")
    # What is wrong is said where the text would be.
    page.click("#tab-write")
    page.fill("#prompt", "word " * 500)
    page.click("#go")
    page.wait_for_selector("#status.bad")
    assert "64 tokens" in page.inner_text(".facts")


@needs_browser
def test_stop_stops(page):
    page.click("#more summary")
    for box in page.query_selector_all("#voices input")[1:]:
        box.uncheck()
    page.fill("#options [name=num_steps]", "1000")
    page.focus("#prompt")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector(".word")
    page.keyboard.press("Escape")
    page.wait_for_selector("#status:text('Stopped.')")
    page.fill("#options [name=num_steps]", "2")
    assert write(page)


@needs_browser
def test_the_keyboard_reaches_everything(page):
    page.click("#more summary")
    write(page)
    page.evaluate("document.activeElement.blur(); window.scrollTo(0, 0)")
    controls = "a, button, input, textarea, select, summary"
    wanted = page.evaluate(
        """(controls) => {
            const shown = [...document.querySelectorAll(controls)].filter((each) =>
                (each.checkVisibility() || each.classList.contains("skip")) && !each.disabled && each.tabIndex >= 0);
            shown.forEach((each, place) => { each.dataset.place = place; });
            return shown.length;
        }""",
        controls,
    )
    reached = set()
    for _ in range(wanted + 5):
        page.keyboard.press("Tab")
        place = page.evaluate("document.activeElement.dataset.place")
        reached.add(place)
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert place is None or outline != "none", "the focus is seen"
    assert reached - {None} == {str(place) for place in range(wanted)}
    page.focus("#tab-write")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.id") == "tab-fill" and page.is_visible("#text")
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("input, textarea, select")]
            .filter((each) => !each.labels.length && !each.getAttribute("aria-label")).map((each) => each.outerHTML)"""
    )
    assert unnamed == []


@needs_browser
def test_a_key_is_asked_for_and_kept_for_the_tab(browser, served):
    from manta.server import ServeSettings

    from .conftest import running

    key = "a-key-of-twenty-letters"
    with running({"one": ("builtin:e2e", served.models["builtin:e2e"])}, ServeSettings(api_key=key)) as guarded:
        context = browser.new_context()
        page = context.new_page()
        page.goto(guarded.url)
        page.wait_for_selector("#key-dialog[open]")
        page.keyboard.press("Escape")
        page.wait_for_selector("#status.bad")
        page.reload()
        page.fill("#key", "k\N{EURO SIGN}y")
        page.click("#key-dialog button")
        page.wait_for_selector("#status.bad:text('no such characters')")
        page.reload()
        page.fill("#key", key)
        page.click("#key-dialog button")
        page.wait_for_selector("#voices input")
        page.fill("#prompt", "name[The Mill]")
        assert write(page)[0]
        context.close()


@needs_browser
@pytest.mark.slow
def test_a_model_is_diagnosed_from_the_page(browser, served):
    context, said = browser.new_context(), []
    page = context.new_page()
    page.on("console", lambda m: said.append(m.text) if m.type == "error" else None)
    page.goto(served.url)
    page.wait_for_selector("#voices input")
    page.click("#tab-diagnose")
    page.fill("#prompt", "name[The Mill], eatType[pub]\nname[Cotto], eatType[restaurant]")
    page.click("#go")
    page.wait_for_selector("#diagnosis-page:not([hidden])", timeout=400_000)
    shown = page.query_selector("#diagnosis-page").content_frame()
    assert "builtin:e2e" in shown.inner_text("body")
    assert shown.evaluate("getComputedStyle(document.body).maxWidth") != "none", "its own style counts"
    wrong = [text for text in said if "status of 404" not in text]
    assert not wrong
    with page.expect_download() as saved:
        page.click("#diagnosis-save")
    assert saved.value.suggested_filename == "diagnosis.html"
    context.close()


def luminance(colour: str) -> float:
    """Relative luminance, 0 … 1 (WCAG 2.2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, two: str) -> float:
    high, low = sorted((luminance(one), luminance(two)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_computed_right():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_every_colour_can_be_read(scheme):
    style = (PAGE / "style.css").read_text(encoding="utf-8")
    blocks = re.findall(r":root \{(.*?)\}", style, re.S)
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[scheme]))
    assert {"ground", "ink", "soft", "panel", "accent", "bad", "c0", "c3", "c6", "c8"} <= set(colours)
    for ground in ("ground", "panel", "c0", "c3", "c6", "c8"):
        assert contrast(colours["ink"], colours[ground]) >= 4.5, ground
    for ink in ("soft", "accent", "bad"):
        assert contrast(colours[ink], colours["ground"]) >= 4.5, ink
    assert contrast(colours["soft"], colours["panel"]) >= 4.5
    assert contrast(colours["on-accent"], colours["accent"]) >= 4.5


def test_the_page_needs_nothing_from_elsewhere():
    for file in PAGE.iterdir():
        text = file.read_text(encoding="utf-8")
        assert not re.findall(r"""(?:src|href|url\(|import )\s*=?\s*["']?(?:https?:)?//""", text), file.name
    html = (PAGE / "index.html").read_text(encoding="utf-8")
    assert "style=" not in html and not re.findall(r"\son\w+=", html)
    ids = re.findall(r'id="([\w-]+)"', html)
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'\$\("([\w-]+)"\)', (PAGE / "app.js").read_text(encoding="utf-8")))
    assert used <= set(ids)
