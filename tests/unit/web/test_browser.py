"""The pages in a real browser: nothing fails to load, nothing is wider than the screen."""

import contextlib
import shutil
import socket
import threading
import time

import pytest

from modelmill.web.app import create
from modelmill.web.start import names_of, open_site

CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("no chromium; run: apt-get install chromium", allow_module_level=True)
sync_api = pytest.importorskip("playwright.sync_api", reason="run: pip install playwright")
import uvicorn  # noqa: E402

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
SCREENS = {"desktop": (1280, 800), "phone": (390, 844)}


@pytest.fixture(scope="module")
def address(filled, folders):
    """Where a real server answers."""
    site = open_site(str(filled), [folders])
    app = create(site, "records.db", names_of("127.0.0.1"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield made
        made.close()


@pytest.fixture(scope="module")
def visit(address, browser):
    """visit(path, screen, scheme) -> a page, whose every complaint and request was watched"""
    with contextlib.ExitStack() as stack:

        def go(path, screen="desktop", scheme="light"):
            width, height = SCREENS[screen]
            size = {"width": width, "height": height}
            page = browser.new_context(viewport=size, color_scheme=scheme).new_page()
            stack.callback(page.context.close)
            page.complaints, page.asked, page.got = [], [], []
            page.on("console", lambda said: page.complaints.append(said.text))
            page.on("pageerror", lambda error: page.complaints.append(str(error)))
            page.on("request", lambda request: page.asked.append(request.url))
            page.on("response", lambda response: page.got.append(response.url))
            assert page.goto(f"{address}{path}").ok
            return page

        yield go


@pytest.fixture(scope="module")
def paths(client):
    platform = client.get("/platforms.json").json()["platforms"][1]["key"]
    measurement = next(
        m["id"]
        for m in client.get(f"/models/{0:064x}.json").json()["measurements"]
        if m["platform"] == platform
    )
    return (
        "/", "/models", f"/models/{1:064x}", f"/models/{3:064x}", "/platforms",
        f"/platforms/{platform}", "/measurements", f"/measurements/{measurement}", "/predictions",
        "/builds", f"/builds/{'b0' * 8}", f"/builds/{'b0' * 8}/report.html", "/accuracy",
        "/search?q=net",
    )  # fmt: skip


@pytest.mark.parametrize("screen", SCREENS)
def test_pages_fit_and_nothing_complains(visit, paths, address, screen):
    for path in paths:
        page = visit(path, screen)
        assert page.complaints == [], path
        assert all(url.startswith(address) for url in page.asked), path
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= SCREENS[screen][0], f"{path} is {wide} px wide"
        page.context.close()


def test_words_can_be_read_by_day_and_by_night(visit):
    """The contrast of text and page is at least 7 : 1 (WCAG 2, level AAA)."""

    def luminance(color):
        parts = [int(c) / 255 for c in color[4:-1].split(",")]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    light = {}
    for scheme in ("light", "dark"):
        page = visit("/models", scheme=scheme)
        style = "(({color, backgroundColor}) => [color, backgroundColor])(getComputedStyle(%s))"
        ink, paper = map(luminance, page.evaluate(style % "document.body"))
        assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) >= 7
        light[scheme] = paper
    assert light["dark"] < 0.1 < 0.9 < light["light"]


def test_from_the_search_to_a_measurement(visit):
    """The way of a person: search, a model, one of its measurements, its chart, its JSON."""
    page = visit("/")
    page.fill("main input[name=q]", "resnet-004")
    page.click("main button")
    page.click("text=resnet-004")
    assert page.inner_text("h1") == "resnet-004"
    page.locator("a[href^='/measurements/']").first.click()
    assert "resnet-004 on" in page.inner_text("h1")
    boxes = [page.locator("svg.chart").nth(i).bounding_box() for i in range(2)]
    assert all(box["width"] > 500 and box["height"] > 15 for box in boxes)
    page.click("text=this page as JSON")
    assert '"samples_ms"' in page.content()


def test_a_dot_leads_to_its_model(visit):
    page = visit("/predictions")
    page.locator("svg a").first.click()
    assert page.url.rpartition("/")[0].endswith("/models") and page.inner_text("h1")


def test_filters_and_the_next_page(visit):
    page = visit("/models")
    page.click("text=Next page")
    assert "after=" in page.url and page.locator("tbody tr").count() == 4
    page.select_option("select[name=family]", "vgg")
    page.click("main button")
    assert page.locator("tbody tr").count() == 13


def test_a_report_runs_nothing(visit, folders):
    """A report that was tampered with: its script is not run, its image is not asked for."""
    report = folders / "deep" / "er" / "one" / "report.html"
    before = report.read_text()
    report.write_text(
        "<title>still</title><script>document.title = 'run'</script><img src=/models>"
    )
    try:
        page = visit(f"/builds/{'b0' * 8}/report.html")
        time.sleep(0.2)
        assert page.title() == "still"
        assert [url.rpartition("/")[2] for url in page.got] == ["report.html"]
    finally:
        report.write_text(before)
