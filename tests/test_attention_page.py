"""Attention on a page and in a picture: what they show is what the weights say.

The page is tried in a real browser, Debian's Chromium for instance, steered by playwright.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from test_visualize import size_of_png

from shared.utils import visualize

WORDS = ["Do", "you", "know", "Kit", ",", "the", "nimble", "hare", "?", "Kit", "knows", "a", "fox"]
WORDS += ["."]  # 14 tokens
LONG = [f"token{i}" for i in range(45)]  # too many letters for the cells
NASTY = [
    "</script><script>hacked = 1</script>", "<img src=x onerror='hacked = 1'>", "<!--", "&lt;",
    '"', "'", "\\u003c", "↵\n", "😀", "{{data}}", "${hacked = 1}", "$a_b$", "x" * 90, "·",
    "\ud83d", "مرحبا",
]  # fmt: skip


def make_weights(
    length: int, layers: int = 2, heads: int = 3, causal: bool = True, seed: int = 0
) -> np.ndarray:
    """Softmax of noise: (L, H, T, T)."""
    scores = 3 * np.random.default_rng(seed).normal(size=(layers, heads, length, length))
    if causal:
        scores[..., np.triu(np.ones((length, length), bool), 1)] = -np.inf
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def write(path: Path, names: list[str], weights: np.ndarray, **more: object) -> Path:
    visualize.write_attention_page(names, weights, path, more.pop("title", "A title"), **more)
    return path


def stored(weights: np.ndarray) -> np.ndarray:
    """What a page keeps of the weights."""
    return np.rint(255 * np.float32(weights)) / 255


class Scripts(HTMLParser):
    """The scripts of a page, as a browser finds them: (attributes, text)."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[dict, str]] = []
        self.open = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if tag == "script":
            self.found.append((dict(attrs), ""))
        self.open = tag == "script"

    def handle_data(self, data: str) -> None:
        if self.open:
            self.found[-1] = (self.found[-1][0], self.found[-1][1] + data)

    def handle_endtag(self, tag: str) -> None:
        self.open = False


def read_data(path: Path) -> dict:
    scripts = Scripts(path.read_text(encoding="utf-8")).found
    assert [attributes.get("type") for attributes, _ in scripts] == ["application/json", None]
    return json.loads(scripts[0][1])


# ------------------------------------------------------------------------------- the page's file


def test_the_page_needs_nothing_else(tmp_path):
    page = write(tmp_path / "a.html", WORDS, make_weights(len(WORDS))).read_text(encoding="utf-8")
    elsewhere = r"https?:|src=|href=|@import|url\(|import\(|fetch\(|XMLHttp|WebSocket|innerHTML"
    assert re.findall(elsewhere, page) == []
    assert "default-src 'none'" in page and "{{" not in page


@pytest.mark.parametrize("causal", [True, False])
def test_the_page_keeps_the_weights(tmp_path, causal):
    weights = make_weights(14, causal=causal)
    data = read_data(write(tmp_path / "a.html", WORDS, weights))
    assert (data["names"], data["layers"], data["heads"], data["causal"]) == (WORDS, 2, 3, causal)
    bytes_ = np.frombuffer(base64.b64decode(data["weights"]), np.uint8)
    back = np.zeros_like(weights)
    there = np.tril(np.ones((14, 14), bool)) if causal else np.ones((14, 14), bool)
    back[:, :, there] = bytes_.reshape(2, 3, -1) / 255  # as many as are needed, or this raises
    assert np.abs(back - weights).max() <= 1 / 255


def test_tokens_cannot_get_out_of_the_data(tmp_path):
    guesses = [[(name, 0.5)] for name in NASTY]
    weights = make_weights(len(NASTY))
    path = write(tmp_path / "a.html", NASTY, weights, title=NASTY[0], guesses=guesses)
    data = read_data(path)
    assert data["names"] == NASTY and data["title"] == NASTY[0]
    assert data["guesses"] == [[list(pair) for pair in each] for each in guesses]


def test_any_kind_of_numbers_will_do(tmp_path):
    weights = torch.tensor(make_weights(14))
    probability = torch.tensor(0.25)
    guesses = [[("a", probability)], *[None] * 13]
    pages = set()
    for kind in (weights, weights.float(), weights.tolist(), weights.numpy()):
        path = write(tmp_path / "a.html", WORDS, kind, guesses=guesses)
        assert read_data(path)["guesses"] == [[["a", 0.25]], *[[]] * 13]
        pages.add(path.read_bytes())
    assert len(pages) == 1


GOOD = make_weights(3)
WRONG = {
    "a head without a layer": (GOOD[0], r"\(L, H, T, T\) with T = 3 names"),
    "another length": (make_weights(4), r"T = 3 names, not \(2, 3, 4, 4\)"),
    "not square": (GOOD[..., :2], r"not \(2, 3, 3, 2\)"),
    "no heads": (GOOD[:, :0], r"not \(2, 0, 3, 3\)"),
    "rows cut off": ([[[[1.0], [0.5, 0.5], [1.0, 0.0, 0.0]]]], "shorter"),
    "not a number": (GOOD * float("nan"), "from 0 to 1"),
    "scores": (GOOD - 0.5, "from 0 to 1"),
    "percent": (100 * GOOD, "from 0 to 1"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("draw", [visualize.write_attention_page, visualize.plot_heads])
def test_wrong_weights_are_refused(tmp_path, draw, name):
    weights, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        draw(["a", "b", "c"], weights, tmp_path / "a", "A title")
    assert list(tmp_path.iterdir()) == []


def test_guesses_for_other_tokens_are_refused(tmp_path):
    with pytest.raises(ValueError, match="guesses must be for 3 tokens, not 2"):
        write(tmp_path / "a.html", ["a", "b", "c"], GOOD, guesses=[[], []])


def test_an_installed_package_has_the_template():
    template = Path(visualize.__file__).with_name("attention.html")
    pyproject = (template.parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    assert f'"shared.utils" = ["{template.name}"]' in pyproject
    assert template.read_text(encoding="utf-8").count("{{data}}") == 1


# ------------------------------------------------------------------------------------ the picture


@pytest.fixture
def picture(tmp_path: Path) -> Callable:
    """Draws heads; a warning is an error. -> width, height in pixels, and the file."""

    def draw(names: list[str], weights: object, title: str = "A title") -> tuple[int, int, bytes]:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            visualize.plot_heads(names, weights, tmp_path / "p.part", title)
        return *size_of_png(tmp_path / "p.part"), (tmp_path / "p.part").read_bytes()

    return draw


def test_a_picture_grows_with_layers_heads_and_tokens(picture):
    width, height, _ = picture(WORDS, make_weights(14, 1, 1))
    assert picture(WORDS, make_weights(14, 1, 3))[0] > width + 200
    assert picture(WORDS, make_weights(14, 3, 1))[1] > height + 200
    wider, higher, _ = picture([*WORDS, *WORDS], make_weights(28, 1, 1))
    assert wider > width + 100 and higher > height + 100


def test_a_picture_of_many_heads_or_tokens_is_not_endless(picture):
    assert max(picture(["a"] * 60, make_weights(60, 1, 6))[:2]) < 2500
    assert max(picture(["a"] * 30, make_weights(30, 1, 12))[:2]) < 3200


def test_a_picture_shows_the_weights_and_the_names(picture):
    weights = make_weights(14, 1, 2, causal=False)
    plain = picture(WORDS, weights)[2]
    assert picture(WORDS, weights.tolist())[2] == plain
    assert picture(WORDS, make_weights(14, 1, 2, causal=False, seed=1))[2] != plain
    assert picture([*WORDS[:-1], "!"], weights)[2] != plain


@pytest.mark.parametrize("names", [NASTY, ["fox"], ["\ud83d", "$"]])
def test_a_picture_of_any_tokens(picture, names):
    picture(names, make_weights(len(names), 1, 2), title="漢 costs $5 or $6")


# ----------------------------------------------------------------------------- in a real browser

slow = pytest.mark.slow  # all together they take seconds
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync",
    "--disable-component-update", "--no-first-run",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator:
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.skip("no Chromium on this machine (apt-get install chromium)")
    with playwright.sync_playwright() as player:
        started = player.chromium.launch(executable_path=program, args=FLAGS)
        yield started
        started.close()


class Tab:
    """An empty page of the browser, and all it complains about or asks for."""

    def __init__(self, browser, settings: dict) -> None:
        self.page = browser.new_context(**settings).new_page()
        self.page.set_default_timeout(60_000)  # ms; a busy machine takes its time
        self.wrong: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.wrong.append(message.text))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("dialog", lambda dialog: self.wrong.append("dialog") or dialog.dismiss())
        self.page.on("request", lambda request: self.requests.append(request.url))


@pytest.fixture(scope="module")
def tabs() -> dict[str, Tab]:
    return {}  # by their settings: to open one takes longer than most of the tests


@pytest.fixture
def visit(browser, tabs: dict[str, Tab], tmp_path: Path) -> Callable:
    """visit(names, weights, ...) shows their page. Errors and requests of it fail the test."""

    @contextmanager
    def opened(names, weights, title="A title", guesses=None, **settings):
        path = write(tmp_path / "page.html", names, weights, title=title, guesses=guesses)
        settings = dict(viewport=dict(width=1280, height=800)) | settings
        key = json.dumps(settings)
        tab = tabs[key] = tabs.get(key) or Tab(browser, settings)
        tab.page.mouse.move(0, 0)  # points at nothing
        tab.wrong.clear()
        tab.requests.clear()
        tab.page.goto(path.as_uri())
        yield tab.page
        assert tab.wrong == [] and tab.requests == [path.as_uri()]

    return opened


OPACITIES = """elements => elements.map(element => {
    const parts = getComputedStyle(element).backgroundColor.match(/[\\d.]+/g);
    return parts.length > 3 ? Number(parts[3]) : 1;
})"""


def shades(page, selector: str) -> np.ndarray:
    """How blue some elements are, from 0 to 1."""
    return np.array(page.locator(selector).evaluate_all(OPACITIES))


def close(shown: np.ndarray, weights: np.ndarray) -> bool:
    """Is a weight shown as its root, and nothing where it is nothing? (A screen has bytes.)"""
    shown, expected = shown.ravel(), np.sqrt(weights.ravel())
    return np.allclose(shown, expected, atol=0.0035) and np.all((shown == 0) == (expected == 0))


def asks(page) -> int:
    """The token that asks."""
    return page.locator(".token").evaluate_all("all => all.findIndex(e => e.matches('.asks'))")


def labels(names: list[str], rows: np.ndarray) -> list[str]:
    """The strongest token of each row, and its share, as cells write it."""
    return [f"“{names[row.argmax()]}”{100 * row.max():.0f} %" for row in rows]


CASES = {
    "causal": (WORDS, make_weights(len(WORDS))),
    "both ways": (WORDS, make_weights(len(WORDS), causal=False)),
    "blocks": (LONG, make_weights(45)),
    "many heads": (WORDS, make_weights(len(WORDS), 2, 8)),
}


@slow
@pytest.mark.parametrize("name", CASES)
def test_every_head_shows_what_the_pointed_token_looks_at(visit, name):
    names, weights = CASES[name]
    kept = stored(weights)
    layers, heads, length, _ = weights.shape
    with visit(names, weights) as page:
        assert page.locator(".layer").count() == layers
        titles = [f"layer {i + 1}, head {j + 1}" for i in range(layers) for j in range(heads)]
        assert page.locator(".cell .label").all_text_contents() == titles
        in_cell = [""] * length if name in ("blocks", "many heads") else names
        assert page.locator(".piece").all_text_contents() == in_cell * layers * heads
        for t in (0, 5, length - 1):
            page.locator(".token").nth(t).hover()
            assert close(shades(page, ".piece"), kept[:, :, t])
            assert close(shades(page, ".token"), kept[:, :, t].mean((0, 1)))  # until one is chosen
            rows = kept[:, :, t].reshape(layers * heads, length)
            assert page.locator(".most").all_text_contents() == labels(names, rows)
            said = page.locator(".cell").last.get_attribute("aria-label")
            assert f"“{names[rows[-1].argmax()]}”" in said and titles[-1] in said


PIXELS = """canvas => {
    const { width, height } = canvas;
    const copy = new OffscreenCanvas(width, height).getContext("2d");
    copy.drawImage(canvas, 0, 0);
    const pixels = copy.getImageData(0, 0, width, height).data;
    return [width, height, ...pixels.filter((_, i) => i % 4 === 3)];
}"""


@slow
def test_a_chosen_head_shades_the_text_and_fills_the_map(visit):
    weights = make_weights(14)
    kept = stored(weights)
    with visit(WORDS, weights) as page:

        def check(expected: np.ndarray, title: str, pressed: int | None) -> None:
            width, height, *pixels = page.locator("canvas").evaluate(PIXELS)
            assert (width, height) == (14, 14)
            root = np.sqrt(expected.ravel())
            assert np.allclose(np.array(pixels) / 255, root, atol=1 / 255)
            assert close(shades(page, ".token"), expected[6])
            assert page.locator("#chosen").text_content() == f"Map: {title}"
            assert title in page.locator("#status").text_content()
            states = [each.get_attribute("aria-pressed") for each in page.locator(".cell").all()]
            assert states == [str(i == pressed).lower() for i in range(6)]
            mean = page.locator("#mean").get_attribute("aria-pressed")
            assert mean == str(pressed is None).lower()

        page.locator(".token").nth(6).hover()
        check(kept.mean((0, 1)), "mean of all heads", None)
        page.locator(".cell").nth(4).click()
        check(kept[1, 1], "layer 2, head 2", 4)
        page.locator(".cell").nth(0).press("Enter")
        check(kept[0, 0], "layer 1, head 1", 0)
        page.locator(".cell").nth(0).click()  # once more
        check(kept.mean((0, 1)), "mean of all heads", None)
        page.locator(".cell").nth(5).click()
        page.locator("#mean").click()
        check(kept.mean((0, 1)), "mean of all heads", None)


@slow
def test_pointing_at_the_map_is_pointing_at_a_token(visit):
    weights = make_weights(14)
    with visit(WORDS, weights) as page:
        page.locator(".cell").nth(2).click()
        box = page.locator("canvas").bounding_box()
        side = box["width"] / 14
        for t, s in ((9, 3), (0, 0), (13, 13)):
            at = dict(x=(s + 0.5) * side, y=(t + 0.5) * side)
            page.locator("canvas").hover(position=at)
            assert asks(page) == t
            assert close(shades(page, ".piece"), stored(weights)[:, :, t])
            row = page.locator("#row").bounding_box()
            assert row["y"] == pytest.approx(box["y"] + t * side, abs=1)
            assert row["height"] == pytest.approx(side, abs=1)
            share = 100 * stored(weights)[0, 2, t, s]
            words = f"“{WORDS[t]}” takes {'< 1' if 0 < share < 0.5 else f'{share:.0f}'} %"
            assert page.locator("#readout").text_content() == f"{words} of “{WORDS[s]}”"
        page.locator("canvas").click(position=dict(x=5, y=4.5 * side))
        page.locator(".token").nth(8).hover()
        assert asks(page) == 4  # pinned


@slow
def test_a_click_pins_and_escape_lets_go(visit):
    with visit(WORDS, make_weights(14)) as page:
        token, status = page.locator(".token"), page.locator("#status")
        assert asks(page) == 13  # something is there before anybody points
        token.nth(4).click()
        token.nth(9).hover()
        assert asks(page) == 4 and "pinned" in status.text_content()
        assert token.nth(4).get_attribute("aria-pressed") == "true"
        page.keyboard.press("Escape")
        assert asks(page) == 4 and "pinned" not in status.text_content()
        page.keyboard.press("Escape")  # nothing to let go
        token.nth(10).hover()
        assert asks(page) == 10
        token.nth(5).click()
        token.nth(7).click()  # the pin moves
        token.nth(2).hover()
        assert asks(page) == 7
        token.nth(7).click()
        token.nth(2).hover()
        assert asks(page) == 2 and "pinned" not in status.text_content()


@slow
def test_keys_do_what_the_pointer_does(visit):
    weights = make_weights(14)
    focused = "[...document.querySelectorAll('.token')].indexOf(document.activeElement)"
    with visit(WORDS, weights) as page:
        page.keyboard.press("Tab")
        assert page.evaluate(focused) == asks(page) == 13
        there_and_back = "Left 12 Up 11 Right 12 Down 13 Right 13"
        for way, t in re.findall(r"(\w+) (\d+)", there_and_back):
            page.keyboard.press(f"Arrow{way}")
            assert page.evaluate(focused) == asks(page) == int(t)
        for key in ("Home", "ArrowLeft"):
            page.keyboard.press(key)
            assert page.evaluate(focused) == asks(page) == 0
            assert close(shades(page, ".piece"), stored(weights)[:, :, 0])
        page.keyboard.press("End")
        outline = "getComputedStyle(document.activeElement).outlineWidth"
        assert page.evaluate(outline) == "3px"  # one sees where one is
        page.keyboard.press("Enter")
        page.locator(".token").nth(2).hover()
        assert asks(page) == 13
        page.keyboard.press("ArrowLeft")  # takes the pin along
        page.locator(".token").nth(2).hover()
        assert asks(page) == 12
        page.keyboard.press("Escape")
        page.keyboard.press("Tab")  # one stop for the whole text
        assert page.evaluate("document.activeElement.id") == "mean"
        page.keyboard.press("Tab")
        page.keyboard.press("Space")
        assert page.locator("#chosen").text_content() == "Map: layer 1, head 1"
        page.keyboard.press("Shift+Tab")
        page.keyboard.press("Shift+Tab")
        assert page.evaluate(focused) == 12


@slow
def test_nasty_tokens_are_shown_and_run_nothing(visit):
    guesses = [[(name, 0.5) for name in NASTY]] * len(NASTY)
    visible = [name.replace("\n", "").replace("\ud83d", "\ufffd") for name in NASTY]
    with visit(NASTY, make_weights(len(NASTY), 1, 2), title=NASTY[0], guesses=guesses) as page:
        assert page.title() == page.locator("h1").text_content() == NASTY[0]
        page.evaluate("names.forEach((name, t) => show(t))")  # all of them, faster than pointing
        page.locator(".token").nth(12).hover()
        shown = page.locator("#guesses .name").all_text_contents()
        for texts in (page.locator(".token").all_text_contents(), shown):
            assert [text.replace("\ud83d", "\ufffd") for text in texts] == visible
        assert page.evaluate("typeof hacked") == "undefined"
        assert page.locator("script").count() == 2 and page.locator("img").count() == 0
        assert page.locator("#text br").count() == 1  # after the line's end
        tall = page.locator("#status").bounding_box()["height"]
        assert tall < 30  # long tokens are cut short there


@slow
def test_what_it_expects_next_is_listed(visit):
    guesses = [[(f"next{t}", 0.75), ("it", 0.2), ("x", 0.004)] for t in range(14)]
    with visit(WORDS, make_weights(14), guesses=guesses) as page:
        page.locator(".token").nth(5).hover()
        assert page.locator("#guesses h2").text_content() == "What it expects after “the”"
        assert "“nimble”" in page.locator("#guesses p").text_content()
        rows = page.locator("#guesses li").all_text_contents()
        assert rows == ["next575 %", "it20 %", "x< 1 %"]
        wide = [each.bounding_box()["width"] for each in page.locator("#guesses .length").all()]
        assert wide[0] / wide[1] == pytest.approx(0.75 / 0.2, rel=0.02)
    with visit(WORDS, make_weights(14)) as page:
        assert not page.locator("#guesses").is_visible()


# Every element with text of its own, against the backgrounds behind it, laid over each other.
CONTRASTS = """() => {
    const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const light = (rgb) => rgb.reduce((sum, each, i) => {
        const part = each / 255;
        const linear = part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
        return sum + linear * [0.2126, 0.7152, 0.0722][i];
    }, 0);
    const behind = (element) => {
        if (element === null) return [0, 0, 0];
        const [r, g, b, opacity = 1] = numbers(getComputedStyle(element).backgroundColor);
        if (opacity === 1) return [r, g, b];
        return behind(element.parentElement).map((each, i) =>
            each * (1 - opacity) + [r, g, b][i] * opacity);
    };
    const found = [];
    for (const element of document.querySelectorAll("body *:not(script, noscript)")) {
        const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
        if (!own || !element.checkVisibility()) continue;
        const ink = light(numbers(getComputedStyle(element).color).slice(0, 3));
        const paper = light(behind(element));
        found.push((Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05));
    }
    return found;
}"""


@slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_is_legible(visit, scheme):
    weights = make_weights(14)
    weights[0, 0] = np.eye(14)  # a word at 100 %
    guesses = [[("it", 0.5)]] * 14
    with visit(WORDS, weights, guesses=guesses, color_scheme=scheme) as page:
        page.locator(".cell").nth(0).click()
        for t in (13, 3):  # the second with words that come after
            page.locator(".token").nth(t).hover()
            contrasts = page.evaluate(CONTRASTS)
            assert len(contrasts) > 14 * 6 and min(contrasts) >= 4.5  # WCAG 2, level AA
        inks = "all => all.map(each => getComputedStyle(each).color)"
        before, after = np.split(np.array(page.locator(".token").evaluate_all(inks)), [4])
        assert len(set(before)) == len(set(after)) == 1 and before[0] != after[0]  # dim
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", paper))) < 200) == (scheme == "dark")


@slow
@pytest.mark.parametrize(
    ("names", "heads"), [(WORDS, 4), (WORDS, 12), (LONG, 1), (LONG, 4), (NASTY, 4)]
)
def test_a_phone_shows_it_without_scrolling_sideways(visit, names, heads):
    weights = make_weights(len(names), 2, heads)
    guesses = [[(NASTY[0], 0.5), ("x" * 90, 0.2)]] * len(names)
    phone = dict(viewport=dict(width=390, height=844), has_touch=True, is_mobile=True)
    with visit(names, weights, guesses=guesses, title="x" * 90, **phone) as page:
        page.locator(".token").nth(4).tap()
        assert asks(page) == 4
        page.locator(".cell").last.tap()
        last = stored(weights)[-1, -1, 4]
        assert close(shades(page, ".token"), last)
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        out = "all => all.filter(e => e.getBoundingClientRect().right > 390.5).length"
        assert page.locator("body *:visible").evaluate_all(out) == 0


@slow
@pytest.mark.parametrize(("length", "layers", "heads"), [(1, 1, 1), (2, 12, 1), (150, 12, 12)])
def test_the_smallest_and_the_largest_page(visit, length, layers, heads):
    weights = make_weights(length, layers, heads)
    with visit(["a"] * length, weights) as page:
        assert page.locator(".cell").count() == layers * heads
        assert page.evaluate("document.documentElement.scrollWidth") == 1280
        t = length // 2
        page.locator(".token").nth(t).hover()
        assert close(shades(page, ".piece"), stored(weights)[:, :, t])
