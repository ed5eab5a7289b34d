"""Every page answers, in HTML and in JSON, every link leads somewhere, and nothing gets out."""

from html.parser import HTMLParser
from urllib.parse import urljoin, urlsplit

import pytest

SKIPPED = ("/report.html", ".css", ".json")


class Links(HTMLParser):
    """Addresses that a page names, and the tags it is made of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.tags: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.append(tag)
        self.found |= {given[n] for n in ("href", "action") if given.get(n)}
        self.loaded += [given[n] for n in ("src", "srcset") if given.get(n)]
        assert not any(name.startswith("on") or name == "style" for name in given)


def crawl(client):
    """Every page that can be reached from the first: {address: response}."""
    waiting, seen = ["/"], {}
    while waiting:
        address = waiting.pop()
        if address in seen:
            continue
        seen[address] = client.get(address)
        if seen[address].headers["content-type"].startswith("text/html"):
            links = Links(seen[address].text).found
            waiting += [urljoin(address, link).partition("#")[0] for link in links]
    return seen


@pytest.fixture(scope="session")
def pages(client):
    return crawl(client)


def test_every_link_leads_somewhere(pages):
    assert {a: r.status_code for a, r in pages.items() if r.status_code != 200} == {}
    kinds = {urlsplit(a).path.split("/")[1] for a in pages}
    assert kinds >= {
        "", "models", "platforms", "measurements", "predictions", "builds", "accuracy", "search",
        "style.css", "index.json",
    }  # fmt: skip
    assert sum("?" in a and "after=" in a for a in pages) >= 4  # second pages of the lists
    assert all(urlsplit(a).netloc == "" for a in pages)


def test_every_page_is_also_json(pages, client):
    for address, response in pages.items():
        path, query = urlsplit(address).path, urlsplit(address).query
        if path.endswith(SKIPPED):
            continue
        said = client.get(f"{path if path != '/' else '/index'}.json?{query}")
        assert said.status_code == 200, address
        assert said.headers["content-type"] == "application/json"
        assert isinstance(said.json(), dict), response


def test_nothing_is_run_or_loaded_from_elsewhere(pages):
    for address, response in pages.items():
        held = Links(response.text) if "text/html" in response.headers["content-type"] else None
        if held is not None:
            assert "script" not in held.tags and not held.loaded, address
            assert all(not urlsplit(link).netloc for link in held.found), address
        policy = response.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'") and "script-src" not in policy
        assert response.headers["x-content-type-options"] == "nosniff"
    css = pages["/style.css"].text
    assert "url(" not in css and "@import" not in css and "prefers-color-scheme: dark" in css


def test_pages_say_how_they_are_shown(pages):
    for response in pages.values():
        if "<nav aria-label" in response.text:
            assert 'name="viewport" content="width=device-width' in response.text
            assert '<html lang="en">' in response.text and response.text.count("<h1>") == 1


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("path", ["/", "/models", "/builds.json", "/style.css"])
def test_only_reading(client, method, path):
    answer = client.request(method, path)
    assert answer.status_code == 405
    assert answer.headers["allow"] == "GET, HEAD"


def test_head_says_what_get_says(client, pages):
    for path in ("/", "/models", "/models.json", "/style.css"):
        head = client.head(path)
        assert head.status_code == 200 and head.content == b""
        assert head.headers["content-type"] == client.get(path).headers["content-type"]


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/nothing", 404, "no page"),
        ("/models/00ff", 404, "no model"),
        ("/platforms/x", 404, "no platform"),
        ("/measurements/999999", 404, "no measurement"),
        ("/measurements/0", 400, "greater than or equal to 1"),
        ("/measurements/99999999999999999999", 400, "less than"),
        ("/measurements/x", 400, "integer"),
        ("/measurements?after=x", 400, "after="),
        ("/measurements?after=1%2099999999999999999999", 400, "after="),
        ("/measurements?sort=fastest", 400, "choose a platform"),
        ("/measurements?sort=sideways", 400, "sort"),
        ("/measurements?platform=x", 404, "no platform"),
        ("/builds/x", 404, "no build"),
        ("/builds/x/report.html", 404, "no report"),
        ("/search?q=" + "x" * 300, 400, "q"),
    ],
)
def test_what_cannot_be_answered(client, path, status, words):
    answer = client.get(path)
    assert answer.status_code == status and words in answer.text
    assert "Traceback" not in answer.text
    place, _, query = path.partition("?")
    said = client.get(f"{place}.json?{query}")
    if not place.endswith("report.html"):
        assert said.status_code == status and words in said.json()["why"]


@pytest.mark.parametrize(
    "path",
    [
        "/builds/../../etc/passwd", "/builds/..%2f..%2fetc%2fpasswd", "/builds/%2e%2e/report.html",
        "/builds/..%5c../report.html", "/builds/deep/report.html", "/builds//etc/report.html",
        "/style.css/../app.py", "/../../../etc/passwd",
    ],
)  # fmt: skip
def test_no_way_out_of_the_folders(client, path):
    answer = client.get(path)
    assert answer.status_code == 404 and "root:" not in answer.text
