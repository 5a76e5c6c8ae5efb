"""The page at /ui: what is sent, and what a real browser makes of it in front of a real server."""

from __future__ import annotations

import asyncio
import json
import re
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from asgi_case import Answered, call
from bad_bundles import make_bad
from headless_chromium import Chromium
from headless_chromium import Page as Opened
from serving_case import INPUT, INT8, Clients, Running, running, tiny_bundle, until

from lowbit.monitoring.baseline import Baseline
from lowbit.monitoring.findings import Finding, Kind
from lowbit.monitoring.store import Monitoring
from lowbit.monitoring.tally import Key, Tally
from lowbit.monitoring.windows import Window
from lowbit.registry.registry import Registry
from lowbit.rollout.evidence import EDGES_S, LATENCY_BINS, latency_bin
from lowbit.serving.service import Service
from lowbit.serving.settings import Settings
from lowbit.serving.ui.files import KINDS, POLICY, Ui, static
from lowbit.serving.web.pages import Asked, Page, Pages
from lowbit.serving.web.rest import Rest
from small_models import images
from test_docs import parse


def fetched(path: str, method: str = "GET", headers: dict[str, str] | None = None, body: bytes = b"", **settings: object) -> Answered:
    """One request to a server with the page, and nothing behind it but `/v1/other`."""

    async def other(_: Asked) -> Page:
        return Page({"other": True})

    async def work() -> Answered:
        made = Settings(**settings)  # type: ignore[arg-type]
        pages = Pages(made)
        pages.add("GET", "/v1/other", other)
        return await call(Rest(Service(made), Ui(made, pages)), method, path, body, headers)

    return asyncio.run(work())


def test_the_page_needs_no_key_and_everything_else_does() -> None:
    assert fetched("/ui/", api_keys=("k",)).status == 200
    assert fetched("/ui/app.js", api_keys=("k",)).status == 200
    assert fetched("/v1/other", api_keys=("k",)).status == 401
    assert fetched("/v1/other", headers={"x-api-key": "k"}, api_keys=("k",)).json == {"other": True}


def test_the_address_without_a_slash_leads_on_and_holds_behind_a_prefix() -> None:
    found = fetched("/ui")
    assert (found.status, found.headers["location"]) == (308, "ui/")


@pytest.mark.parametrize("name", sorted(static()))
def test_every_file_is_sealed_and_has_its_kind(name: str) -> None:
    found = fetched(f"/ui/{name}")
    assert found.status == 200
    assert found.headers["content-type"] == KINDS[name.rpartition(".")[2]]
    assert found.headers["content-security-policy"] == POLICY
    assert found.headers["x-content-type-options"] == "nosniff"
    assert found.headers["referrer-policy"] == "no-referrer"
    assert int(found.headers["content-length"]) == len(found.body) > 0


def test_a_browser_asks_again_and_is_told_when_nothing_changed() -> None:
    first = fetched("/ui/app.js")
    assert first.headers["cache-control"] == "no-cache"
    tag = first.headers["etag"]
    for known in (tag, f'W/{tag}, "other"', "*"):
        found = fetched("/ui/app.js", headers={"if-none-match": known})
        assert (found.status, found.body, found.headers["etag"]) == (304, b"", tag)
        assert "content-length" not in found.headers
    assert fetched("/ui/app.js", headers={"if-none-match": '"other"'}).status == 200
    assert len({file.tag for file in static().values()}) == len(static())


@pytest.mark.parametrize(
    "path", ["/ui/none.js", "/ui/../settings.py", "/ui/%2e%2e/files.py", "/ui/views", "/ui//app.js", "/uix", "/ui/files.py"]
)
def test_there_is_nothing_else(path: str) -> None:
    assert fetched(path).status == 404


def test_other_methods_are_refused() -> None:
    found = fetched("/ui/", "POST", body=b"{}")
    assert (found.status, found.headers["allow"]) == (405, "GET, HEAD")


def test_the_facts_hold_no_data(tmp_path: Path) -> None:
    plain = fetched("/ui/server.json").json
    assert {name: plain[name] for name in ("keys", "registry", "record", "state")} == {
        "keys": False,
        "registry": False,
        "record": True,
        "state": False,
    }
    kept = fetched("/ui/server.json", api_keys=("secret",), registry=tmp_path, state=tmp_path)
    assert {**kept.json, "version": ""} == {"version": "", "keys": True, "registry": True, "record": True, "state": True}
    assert b"secret" not in kept.body
    assert str(tmp_path).encode() not in kept.body
    assert kept.headers["cache-control"] == "no-store"


def test_the_policy_allows_this_origin_only() -> None:
    rules = dict(rule.split(" ", 1) for rule in POLICY.split("; "))
    assert rules.pop("default-src") == "'none'"
    assert {rules[name] for name in ("script-src", "style-src", "connect-src", "img-src")} == {"'self'"}
    assert rules["trusted-types"] == "'none'"
    assert "unsafe" not in POLICY


MARKUP = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|srcdoc|\beval\(|new Function|createContextualFragment"
)
ELSEWHERE = re.compile(r"(?:https?:)?//[a-z][\w.-]*\.[a-z]{2,}", re.IGNORECASE)


@pytest.mark.parametrize("name", sorted(static()))
def test_nothing_makes_markup_of_strings_or_asks_elsewhere(name: str) -> None:
    text = static()[name].content.decode()
    assert MARKUP.findall(text) == []
    assert [found for found in ELSEWHERE.findall(text) if not found.endswith("//www.w3.org")] == []
    assert "style=" not in text  # the policy would stop it


def test_modules_import_files_that_are_there() -> None:
    for name, file in static().items():
        for found in re.findall(r'from "(\.[^"]+)"', file.content.decode()):
            home = Path("/") / Path(name).parent
            assert str((home / found).resolve())[1:] in static(), (name, found)


COMMAND = re.compile(r"[\"`](lowbit [a-z]+ [^\"`]+)[\"`]")


def test_the_commands_that_it_names_parse() -> None:
    found = {line for file in static().values() for line in COMMAND.findall(file.content.decode())}
    assert len(found) >= 6
    for line in found:
        parse(re.sub(r"\$\{[^}]*\}", "1", line))


# In a browser ----------------------------------------------------------------------------------------------------------

EVIL = "<img src=x onerror=alert(1)><script>alert(2)</script>\"'&"
KEY = "the key"
VIEWS = ("now", "models", "rollouts", "traffic", "reviews", "cost", "audit")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state folder with a review that somebody gave a hostile text."""
    folder = tmp_path_factory.mktemp("state")
    with Monitoring(folder) as kept:
        open_review(kept, EVIL)
    return folder


def open_review(kept: Monitoring, text: str, kind: Kind = "confidence") -> str:
    """A shift of the tiny model's confidences, found just now."""
    counts, before = [0] * 256, [0] * 256
    counts[200], before[250] = 2500, 20_000
    now = time.time()
    window = Window(Key("tiny", "1", INT8), now - 60, now, Tally(requests=2500, rows=2500, recorded=2500, confidence=tuple(counts)))
    found = kept.reviews.open(
        Finding(kind, 0.2, 0.05, True, text, 2500), window, Baseline(Tally(recorded=20_000, confidence=tuple(before)))
    )
    assert found is not None
    return found.id


@pytest.fixture(scope="module")
def open_server(tiny: Path) -> Iterator[Running]:
    """Without keys, registry and state."""
    with running(tiny, options=("--no-grpc",)) as server:
        yield server


@pytest.fixture(scope="module")
def keyed_server(tiny: Path, state: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """With a key and a state folder."""
    keys = tmp_path_factory.mktemp("keys") / "keys.txt"
    keys.write_text(f"{KEY}\n")
    with running(tiny, options=("--no-grpc", "--state", state, "--api-key-file", keys, "--window-every", "1s")) as server:
        yield server


def ours(page: Opened, server: Running) -> None:
    """Nothing was said on the console, and nothing was asked of anybody else."""
    assert page.messages == []
    assert [url for url in page.urls if not url.startswith(f"{server.url}/")] == []


def unlocked(browser: Chromium, server: Running, view: str, width: int = 1280, dark: bool = False) -> Opened:
    """The page with the key, at one of its views."""
    page = browser.open(f"{server.url}/ui/#/{view}", width, dark=dark)
    browser.until("document.querySelector('dialog[open] input') !== null")
    browser.type(KEY)
    browser.press("Enter")
    browser.until("document.querySelector('dialog') === null && document.querySelector('main h1')?.textContent !== 'Locked'")
    return page


def shown(browser: Chromium) -> str:
    found: str = browser.evaluate("document.querySelector('main').innerText")
    return found


def press(browser: Chromium, text: str) -> None:
    """A button by its text, with the mouse; one of the dialog's where one is open."""
    within = "[...(document.querySelector('dialog[open]') ?? document).querySelectorAll('button')]"
    found = f"{within}.find((each) => each.textContent === {json.dumps(text)})"
    browser.until(f"{found} !== undefined")
    browser.evaluate(f"{found}.click()")


def fill(browser: Chromium, **fields: str) -> None:
    """Fields of the open dialog, as a person would: the focus in each, and then typed."""
    for name, value in fields.items():
        browser.evaluate(f"document.querySelector('dialog [name={name}]').focus()")
        browser.evaluate("document.activeElement.select?.()")
        browser.type(value)


def test_bins_of_latencies_are_those_of_the_rollout(browser: Chromium, open_server: Running) -> None:
    browser.open(f"{open_server.url}/ui/", 1280)
    found = browser.evaluate("import('/ui/latency.js').then((module) => module.EDGES_S)")
    assert found == pytest.approx(EDGES_S, rel=1e-9)
    assert len(found) == LATENCY_BINS - 1
    counts = [0] * LATENCY_BINS
    counts[latency_bin(0.002)], counts[latency_bin(0.050)] = 98, 2
    p50, p99 = browser.evaluate(f"import('/ui/latency.js').then(({{ quantile }}) => [quantile({counts}, 0.5), quantile({counts}, 0.99)])")
    assert (p50, p99) == (pytest.approx(0.002, rel=0.02), pytest.approx(0.050, rel=0.02))


WORDS = {
    "share(0.0123)": "1.23 %",
    "share(0.25)": "25 %",
    "share(-0.004)": "−0.4 %",
    "share(null)": "–",
    "digits(0.00123456)": "0.00123",
    "digits(12345.6)": "12,346",
    "digits(undefined)": "–",
    "milliseconds(1.234)": "1.23 ms",
    "milliseconds(2500)": "2.50 s",
    "size(1170000)": "1.17 MB",
    "joules(0.0042)": "4.20 mJ",
    "money(0.0081)": "$0.00810",
    "span(59.6)": "1 min 00 s",
    "span(7260)": "2 h 01 min",
    "ago(100, 103)": "3 s ago",
    "ago(null)": "–",
    "plural(1, 'review')": "1 review",
    "plural(1200, 'review')": "1,200 reviews",
}


def test_words(browser: Chromium, open_server: Running) -> None:
    browser.open(f"{open_server.url}/ui/", 1280)
    calls = ", ".join(f"w.{call}" for call in WORDS)
    assert browser.evaluate(f"import('/ui/words.js').then((w) => [{calls}])") == list(WORDS.values())


def test_a_redraw_keeps_focus_and_what_was_opened(browser: Chromium, open_server: Running) -> None:
    browser.open(f"{open_server.url}/ui/", 1280)
    found = browser.evaluate(
        """import('/ui/dom.js').then(({ h, morph }) => {
          const buttons = (names) => names.map((name) => h('button', {'data-key': name}, name));
          const list = (names) => h('div', {}, h('details', {'data-key': 'more'}, h('summary', {}, 's')), buttons(names));
          const old = list(['a', 'b', 'c']);
          document.body.append(old);
          old.querySelector('[data-key=b]').focus();
          old.querySelector('details').open = true;
          const kept = old.querySelector('[data-key=b]');
          morph(old, list(['b', 'd', 'c']));
          return [[...old.querySelectorAll('button')].map((each) => each.textContent).join(''), document.activeElement === kept,
                  old.querySelector('details').open, old.querySelector('[data-key=b]') === kept];
        })"""
    )
    assert found == ["bdc", True, True, True]


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_without_keys_the_page_reads_and_says_how_to_get_buttons(browser: Chromium, open_server: Running, width: int, dark: bool) -> None:
    page = browser.open(f"{open_server.url}/ui", width, dark=dark)  # and the redirect is followed
    browser.until("document.getElementById('banner').innerText.includes('--api-key-file')")
    for view in VIEWS:
        browser.evaluate(f"location.hash = '#/{view}'")
        browser.until(f"document.querySelector('nav [aria-current]')?.hash === '#/{view}' && document.querySelector('main h1') !== null")
        assert browser.evaluate("document.documentElement.scrollWidth") <= width, view
        assert browser.evaluate("document.querySelectorAll('main button').length") == 0, view
    browser.evaluate("location.hash = '#/now'")
    browser.until("document.querySelector('main').innerText.includes('lowbit registry push')")
    ours(page, open_server)


def test_the_key_is_asked_for_kept_in_the_tab_and_forgotten(browser: Chromium, keyed_server: Running) -> None:
    page = browser.open(f"{keyed_server.url}/ui/", 1280)
    browser.until("document.querySelector('dialog[open] input') !== null")
    assert [url for url in page.urls if "/v1/" in url] == []  # nothing is asked before there is a key
    browser.type("a wrong one")
    browser.press("Enter")
    browser.until("document.querySelector('dialog .problem').textContent.includes('did not take this key')")
    fill(browser, key=KEY)
    browser.press("Enter")
    browser.until("document.querySelector('dialog') === null")
    assert browser.evaluate("[sessionStorage.getItem('lowbit.key'), localStorage.length, document.cookie]") == [KEY, 0, ""]
    browser.until("document.querySelector('main .v-open') !== null")
    assert not any(KEY in url for url in page.urls)
    browser.evaluate("sessionStorage.setItem('lowbit.by', 'ana')")  # as a dialog would
    press(browser, "Forget the key")
    browser.until("document.querySelector('main h1').textContent === 'Locked'")
    assert browser.evaluate("sessionStorage.length") == 0
    assert browser.evaluate("document.querySelectorAll('main section').length") == 0  # nor does the page keep what it read


def test_what_people_wrote_is_text(browser: Chromium, keyed_server: Running) -> None:
    page = unlocked(browser, keyed_server, "reviews")
    browser.until(f"document.querySelector('main').innerText.includes({json.dumps(EVIL)})")
    assert browser.evaluate("document.querySelectorAll('main img, main script, main [onerror]').length") == 0
    ours(page, keyed_server)
    refused = browser.evaluate("try { document.body.innerHTML = '<b>x</b>'; 'done' } catch (error) { error.name }")
    assert refused == "TypeError"  # Trusted Types: the browser itself would stop it


def test_dialogs_hold_the_focus_and_give_it_back(browser: Chromium, keyed_server: Running) -> None:
    unlocked(browser, keyed_server, "reviews")
    browser.until("document.querySelector('main [data-do=review-accept]') !== null")
    browser.evaluate("document.querySelector('main [data-do=review-accept]').focus()")
    browser.press("Enter")
    browser.until("document.activeElement?.name === 'by'")
    seen = []
    for _ in range(5):
        seen.append(browser.evaluate("document.activeElement.name || document.activeElement.textContent"))
        browser.press("Tab")
    assert seen == ["by", "why", "Accept", "Cancel", "by"]
    browser.press("Tab", shift=True)
    browser.press("Tab", shift=True)
    assert browser.evaluate("document.activeElement.textContent") == "Cancel"
    browser.press("Escape")
    browser.until("document.querySelector('dialog') === null")
    assert browser.evaluate("document.activeElement.dataset.do") == "review-accept"
    assert browser.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"  # and one sees where it is


def test_a_review_is_accepted_with_the_keyboard_alone(browser: Chromium, keyed_server: Running, state: Path) -> None:
    page = unlocked(browser, keyed_server, "reviews", 390)
    browser.until("document.querySelector('main [data-do=review-accept]') !== null")
    for _ in range(30):
        browser.press("Tab")
        if browser.evaluate("document.activeElement.dataset.do === 'review-accept'"):
            break
    browser.press("Enter")
    browser.until("document.activeElement?.name === 'by'")
    browser.press("Tab")
    browser.press("Tab")
    browser.press("Enter")
    browser.until("document.querySelector('dialog .problem').textContent.includes('needed')")
    assert browser.evaluate("document.activeElement.name") == "by"  # where it is missing
    browser.type("ana")
    browser.press("Tab")
    browser.type(EVIL)
    browser.press("Tab")
    browser.press("Enter")
    browser.until("document.getElementById('said').textContent.includes('Accepted')")
    assert browser.evaluate("document.getElementById('said').getAttribute('aria-live')") == "polite"
    browser.until("document.querySelector('main .v-open') === null && document.querySelector('main details') !== null")
    assert browser.evaluate("document.activeElement.id") == "main"  # the button is gone
    with Monitoring(state) as kept:
        [review] = kept.reviews.listed()
        assert (review.state, review.by, review.why) == ("accepted", "ana", EVIL)
    ours(page, keyed_server)


@pytest.mark.parametrize(("width", "dark"), [(1280, True), (390, False)])
def test_traffic_and_cost_are_drawn(browser: Chromium, keyed_server: Running, width: int, dark: bool) -> None:
    send(keyed_server, 40)
    page = unlocked(browser, keyed_server, "traffic", width, dark)
    browser.until("document.querySelectorAll('main section svg.histogram path').length >= 2")
    assert INT8 in shown(browser)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate(
        "[...document.querySelectorAll('main svg[role=img]')].every((each) => each.getAttribute('aria-label').length > 10)"
    )
    browser.evaluate("location.hash = '#/cost'")
    browser.until(f"document.querySelector('main table')?.innerText.includes('{INT8}')")
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    ours(page, keyed_server)


def send(server: Running, requests: int) -> None:
    """Real requests, so that there is something to show."""
    data = images(1).reshape(-1).tolist()
    body = json.dumps({"inputs": [{"name": INPUT, "shape": [1, 3, 8, 8], "datatype": "FP32", "data": data}]}).encode()
    for _ in range(requests):
        asked = urllib.request.Request(f"{server.url}/v2/models/tiny/infer", body, {"X-API-Key": KEY})
        with urllib.request.urlopen(asked, timeout=30) as answer:
            assert answer.status == 200


def test_nobody_looks_and_nothing_is_asked(browser: Chromium, open_server: Running) -> None:
    page = browser.open(f"{open_server.url}/ui/", 1280)

    def look(state: str) -> None:
        browser.evaluate(f"Object.defineProperty(document, 'visibilityState', {{value: '{state}', configurable: true}})")
        browser.evaluate("document.dispatchEvent(new Event('visibilitychange'))")

    def asked() -> int:
        browser.evaluate("1")  # hears what happened meanwhile
        return len(page.urls)

    browser.until("document.getElementById('link').innerText === 'live'")
    began = asked()
    until(lambda: asked() >= began + 2)
    look("hidden")
    time.sleep(0.5)
    before = asked()
    time.sleep(2.5)
    assert asked() == before
    look("visible")
    until(lambda: asked() > before)


def test_a_server_that_goes_is_missed_and_one_that_comes_is_welcome(browser: Chromium, tiny: Path) -> None:
    with running(tiny, options=("--no-grpc", "--drain", "1s")) as first:
        browser.open(f"{first.url}/ui/#/cost", 1280)
        browser.until("document.getElementById('link').innerText === 'live'")
        first.stop()
        browser.until("document.getElementById('banner').innerText.includes('has not answered since')")
        assert browser.evaluate("document.getElementById('link').innerText") == "away"
        assert browser.evaluate("document.querySelector('main h1').textContent") == "Cost"  # what was there stays
        with running(tiny, options=("--no-grpc", "--port", first.port)):
            browser.until("document.getElementById('said').textContent.includes('The server answers again.')")
            assert browser.evaluate("document.getElementById('link').innerText") == "live"


# From a rollout to its end -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def registry(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 2 of the tiny model is the champion; version 3 is sure of nothing any more."""
    folder = tmp_path_factory.mktemp("registry")
    with Registry.open(folder, create=True) as made:
        made.push(tiny, "tiny", by="ana")
        made.push(make_bad(tiny, tmp_path_factory.mktemp("bad") / "tiny", "shifted"), "tiny", by=EVIL)
        made.promote("tiny@2", by="ana", why="the first one")
    return folder


@pytest.fixture(scope="module")
def registry_server(registry: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    keys = tmp_path_factory.mktemp("keys") / "keys.txt"
    keys.write_text(f"{KEY}\n")
    options = ("--no-grpc", "--registry", registry, "--api-key-file", keys, "--window-every", "1s", "--price", "0.05")
    with running("tiny@champion", options=options) as server:
        yield server


class Senders(Clients):
    """Clients that ask with 16 rows at a time."""

    def __init__(self, server: Running, number: int) -> None:
        super().__init__(number)
        self.server = server

    def ask(self, number: int) -> None:
        body = json.dumps(
            {"inputs": [{"name": INPUT, "shape": [16, 3, 8, 8], "datatype": "FP32", "data": images(16, number).ravel().tolist()}]}
        )
        while not self.stopped.is_set():
            asked = urllib.request.Request(f"{self.server.url}/v2/models/tiny/infer", body.encode(), {"X-API-Key": KEY})
            with urllib.request.urlopen(asked, timeout=30) as answer:
                self.seen[answer.status] += 1


def test_a_rollout_is_started_fails_and_goes_back_and_a_review_is_accepted(
    browser: Chromium, registry_server: Running, registry: Path
) -> None:
    page = unlocked(browser, registry_server, "models")
    browser.until(f"document.querySelector('main').innerText.includes({json.dumps(EVIL)})")  # who pushed version 3
    press(browser, "Start a rollout")
    browser.until("document.querySelector('dialog[open]') !== null")
    assert browser.evaluate("document.querySelector('dialog [name=candidate]').value") == "tiny@3"
    fill(browser, steps="50, 100", step_s="1", min_requests="50", by="ana")
    press(browser, "Start")
    browser.until("document.querySelector('dialog') === null")
    browser.evaluate("location.hash = '#/now'")
    browser.until("document.querySelector('main h1').innerText.startsWith('Canary at 50 %')")
    with Senders(registry_server, 2) as senders:
        browser.until("document.querySelectorAll('main .guardrails li').length === 6")
        browser.until("document.querySelector('main h1').innerText.startsWith('Rolled back')")
        browser.until("document.querySelector('main [data-do=review-accept]') !== null", 60)
    browser.until("document.querySelector('main .guardrails [data-key=confidence] .chip').innerText === 'fail'")
    browser.until("document.querySelectorAll('main [data-key=distributions] svg').length === 2")
    assert set(senders.seen) == {200}
    with Registry.open(registry) as kept:
        assert {alias: version.number for alias, version in kept.aliases("tiny").items()} == {"champion": 2}
    browser.evaluate("location.hash = '#/reviews'")
    first = "document.querySelector('main .v-open:has([data-do=review-accept])')?.dataset.key"
    waiting = browser.until(first)
    while waiting:  # as long as one is open, rollouts are paused
        press(browser, "Accept as normal")
        browser.until("document.querySelector('dialog[open]') !== null")
        fill(browser, by="ana", why="the images of the test are noise")
        press(browser, "Accept")
        browser.until(f"document.querySelector('dialog') === null && {first} !== '{waiting}'")
        waiting = browser.evaluate(first)
    assert "Accepted" in browser.evaluate("document.getElementById('said').textContent")
    assert "the images of the test are noise" in browser.evaluate("document.querySelector('main details').textContent")
    browser.evaluate("location.hash = '#/audit'")
    browser.until("document.querySelector('main h1').innerText.includes('verified')")
    assert "Rollout rollback" in shown(browser)
    ours(page, registry_server)


def test_a_person_steers_a_rollout_and_takes_the_champion_back(browser: Chromium, registry_server: Running, registry: Path) -> None:
    """Behind the test above: the champion is version 2."""

    def aliases() -> dict[str, int]:
        with Registry.open(registry) as kept:
            return {alias: version.number for alias, version in kept.aliases("tiny").items()}

    def pressed(text: str, submit: str, done: str) -> None:
        press(browser, text)
        browser.until("document.querySelector('dialog[open]') !== null")
        fill(browser, by="ana", why=EVIL)
        press(browser, submit)
        browser.until(f"document.getElementById('said').textContent.includes('{done}')")

    page = unlocked(browser, registry_server, "models", 390)
    press(browser, "Start a rollout")
    browser.until("document.querySelector('dialog[open]') !== null")
    browser.evaluate("document.querySelector('dialog [name=candidate]').value = 'tiny@1'")
    fill(browser, steps="0, 300", by="ana")
    press(browser, "Start")
    browser.until("document.querySelector('dialog .problem').textContent.includes('per cents above 0')")
    fill(browser, steps="20, 100")
    press(browser, "Start")
    browser.until("document.querySelector('dialog') === null")
    browser.evaluate("location.hash = '#/rollouts'")
    browser.until("document.querySelector('main table .v-running') !== null")
    browser.evaluate("document.querySelector('main tbody a').click()")
    pressed("Pause", "Pause", "Paused")
    browser.until("document.querySelector('main h1').innerText.startsWith('Paused at 20 %')")
    pressed("Go on", "Go on", "The rollout goes on")
    browser.until("document.querySelector('main h1').innerText.startsWith('Canary at 20 %')")
    pressed("Promote now", "Promote", "Promoted")
    browser.until("document.querySelector('main h1').innerText.startsWith('Promoted')")
    assert aliases() == {"champion": 1, "fallback": 2}
    browser.evaluate("location.hash = '#/models'")
    pressed("Roll back the champion", "Roll back", "tiny is rolled back")
    assert aliases()["champion"] == 2
    for view in VIEWS:
        browser.evaluate(f"location.hash = '#/{view}'")
        browser.until(f"document.querySelector('nav [aria-current]')?.hash === '#/{view}'")
        time.sleep(0.3)
        assert browser.evaluate("document.documentElement.scrollWidth") <= 390, view
        assert "cannot draw" not in shown(browser), view
    ours(page, registry_server)
