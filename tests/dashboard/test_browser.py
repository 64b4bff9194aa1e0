"""The dashboard in a real browser: each page and action, hostile texts, keyboard, contrast, width.

Needs Debian's chromium and playwright. ``REDISAGG_SCREENSHOTS`` names a folder into which a
picture of each page is put: in light, dark and narrow.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from redisagg import Task
from redisagg.testing.embedded import EmbeddedRedis
from tests.dashboard.browser import (
    CHROMIUM,
    CONTEXTS,
    NAME,
    XSS,
    Browser,
    Stage,
    low_contrast,
    overflow,
    quick_history,
    served,
)
from tests.support.servers import wait_until

playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs a browser (Debian: chromium)"),
]

WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 400, "height": 800}

PAGES: dict[str, tuple[str, dict[str, str]]] = {
    "overview": ("", {}),
    "overview-month": ("", {"span": "month"}),
    "groups": ("groups", {}),
    "groups-by-size": ("groups", {"sort": "size", "prefix": "customer:"}),
    "groups-none": ("groups", {"prefix": "nobody"}),
    "group": ("group", {"key": "customer:7"}),
    "group-paused": ("group", {"key": "customer:1"}),
    "batches": ("batches", {}),
    "batches-in-retry": ("batches", {"state": "retry"}),
    "batch": ("batch", {"id": "RETRY"}),
    "dead": ("dead", {}),
    "dead-by-error": ("dead", {"q": "locked"}),
    "dead-letter": ("dead-letter", {"id": "DEAD"}),
    "flushers": ("flushers", {}),
    "policies": ("policies", {"test": "customer:7"}),
}
"""Each page, with an address; RETRY and DEAD are the id of a batch and of a dead letter."""


@pytest.fixture(scope="module")
def stage(server_binary: Path) -> Iterator[Stage]:
    """A living namespace on a server of its own."""
    with quick_history(), EmbeddedRedis(server_binary) as server:
        stage = Stage(server.url)
        try:
            stage.fill()
            yield stage
        finally:
            stage.close()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser."""
    with playwright.sync_playwright() as runner:
        browser = runner.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def site(stage: Stage) -> Iterator[str]:
    """The address of a dashboard that knows the merge function."""
    with served(stage.url, aggregators=[stage.agg]) as address:
        yield address


@pytest.fixture
def browse(chromium: Any, site: str) -> Iterator[Callable[..., Browser]]:
    """Opens windows of the browser, with options such as its size."""
    opened = []

    def browse(address: str = site, **options: Any) -> Browser:
        context = chromium.new_context(**{"viewport": WIDE, "reduced_motion": "reduce", **options})
        context.set_default_timeout(20_000)
        opened.append(context)
        return Browser(context.new_page(), address)

    yield browse
    for context in opened:
        context.close()


@pytest.fixture
def browser(browse: Callable[..., Browser]) -> Browser:
    """A window of the browser."""
    return browse()


def opened(browser: Browser, stage: Stage, name: str) -> None:
    """Opens one of `PAGES`."""
    page, query = PAGES[name]
    ids = {"RETRY": _in_retry(stage), "DEAD": _dead(stage)}
    browser.open(page, **{key: ids.get(value, value) for key, value in query.items()})


def _in_retry(stage: Stage) -> str:
    return next(each.batch_id for each in stage.agg.get_batches() if "again" in each.group_key)


def _dead(stage: Stage) -> str:
    return next(each.batch_id for each in stage.agg.dead_letters() if "locked" in each.error)


# --- each page -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_whole_in_light_dark_and_narrow(
    browse: Callable[..., Browser], stage: Stage, name: str
) -> None:
    folder = os.environ.get("REDISAGG_SCREENSHOTS")
    window = browse()
    for look, scheme, size in (
        ("light", "light", WIDE),
        ("dark", "dark", WIDE),
        ("narrow", "light", NARROW),
    ):
        window.page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        window.page.set_viewport_size(size)
        if look != "dark":  # it takes no other page
            opened(window, stage, name)
        window.check()
        assert window.page.locator("h1").first.inner_text().strip()
        assert overflow(window.page) == [], look
        assert low_contrast(window.page) == [], look
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            window.page.screenshot(path=Path(folder) / f"{name}-{look}.png", full_page=True)


def test_what_is_no_page_is_told(browser: Browser) -> None:
    for address in (f"{browser.here}/nothing", f"{browser.site}/n/redis/other/"):
        response = browser.page.goto(address)
        assert response is not None
        assert response.status == 404
        browser.check()


def test_pages_are_reached_from_each_other(browser: Browser) -> None:
    browser.page.goto(browser.site + "/")
    assert browser.page.url == browser.here + "/", "there is one namespace only"
    for link in browser.page.locator("#nav a").all_inner_texts():
        name = link.splitlines()[0].strip().rstrip("0123456789")
        browser.page.locator("#nav a", has_text=name).click()
        browser.page.wait_for_load_state("load")
        current = browser.page.locator('#nav a[aria-current="page"]').inner_text()
        assert current.startswith(name)
        browser.check()


# --- hostile texts -------------------------------------------------------------------------------


def test_no_text_runs_on_the_pages_that_list_all(browser: Browser) -> None:
    for page, query in (
        ("", {}),
        *(("groups", {"sort": sort}) for sort in ("due", "size", "age")),
        ("batches", {}),
        ("dead", {}),
        ("policies", {}),
    ):
        browser.open(page, **query)
        browser.check()
    # They are there, as texts.
    browser.open("groups", prefix=XSS[0])
    assert browser.page.locator("tbody .key").first.inner_text() == XSS[0]


def test_no_text_runs_on_the_page_of_its_group(browser: Browser) -> None:
    for text in CONTEXTS:
        browser.open("group", key=text)
        for task in browser.page.locator("details.task").all():
            task.evaluate("(each) => { each.open = true; }")
        browser.check()
        shown = browser.page.locator("pre.payload").first.inner_text()
        assert "note" in shown, text


def test_no_text_runs_on_the_page_of_its_dead_letter(browser: Browser, stage: Stage) -> None:
    letters = {letter.error: letter.batch_id for letter in stage.agg.dead_letters()}
    assert len(letters) > len(XSS)
    for text in CONTEXTS:
        browser.open("dead-letter", id=letters[f"Unrecoverable: {text}"])
        browser.check()


@pytest.mark.parametrize("page", ["groups", "group", "batch", "dead", "dead-letter", "policies"])
def test_no_text_of_an_address_runs(browser: Browser, page: str) -> None:
    name = {"groups": "prefix", "group": "key", "dead": "q", "policies": "test"}.get(page, "id")
    for text in CONTEXTS:
        browser.open(page, **{name: text})
        browser.check()
        if page in ("groups", "dead"):
            assert browser.page.locator("#search").input_value() == text.translate(_LOST)


_LOST = {ord(each): None for each in "\r\n\x00"}
"""What a field of one line leaves out."""


def test_no_text_runs_when_it_is_acted_on(browser: Browser, stage: Stage) -> None:
    for text in CONTEXTS[:3]:
        browser.open("group", key=text)
        browser.submit("pause")
        assert browser.page.locator('form[action$="/do/resume"]').count()
        browser.submit("resume")
    letter = stage.dead_letter(XSS[2])
    browser.open("dead-letter", id=letter)
    browser.submit("try")
    assert XSS[2] in browser.page.locator("main").inner_text()


# --- actions -------------------------------------------------------------------------------------


def test_the_actions_of_a_group(browser: Browser, stage: Stage) -> None:
    agg = stage.agg
    agg.add_tasks(Task("kind", n, "mine") for n in range(3))

    def state() -> Any:
        return agg.get_groups()["mine"]

    browser.open("group", key="mine")
    assert "paused" in browser.submit("pause").lower()
    assert state().paused
    browser.submit("resume")
    assert not state().paused
    before = state().due_at
    browser.page.locator('form[action$="/do/postpone"] [name=minutes]').select_option("1440")
    assert "wait" in browser.submit("postpone")
    assert state().due_at > before + 30_000
    browser.page.locator("details.task summary").first.click()
    assert "removed" in browser.submit("cancel", within="details.task[open]")
    assert state().size == 2
    agg.resume("mine")
    assert "due now" in browser.submit("flush")
    wait_until(lambda: "mine" not in agg.get_groups(), what="it is flushed")
    agg.add_task(Task("kind", 0, "mine"))
    browser.open("group", key="mine")
    assert "removed" in browser.submit("cancel", within=".toolbar")
    assert agg.get_group("mine") is None


def test_a_group_is_flushed_from_the_list(browser: Browser, stage: Stage) -> None:
    stage.agg.add_task(Task("kind", 0, "alone"))
    browser.open("groups", prefix="alone")
    assert "1 task is due now" in browser.submit("flush", within="tbody")
    wait_until(lambda: "alone" not in stage.agg.get_groups(), what="it is flushed")


def test_all_flushing_is_paused_and_resumed(browser: Browser, stage: Stage) -> None:
    browser.open()
    browser.submit("pause")
    assert stage.agg.stats().paused
    assert "paused" in browser.page.locator(".health").inner_text().lower()
    browser.submit("resume")
    assert not stage.agg.stats().paused


def test_asked_whether_to_go_on_one_can_keep_all(browser: Browser, stage: Stage) -> None:
    letter = stage.dead_letter()
    browser.open("dead-letter", id=letter)
    browser.page.locator(
        'button[formaction$="/do/drop"], form[action$="/do/drop"] button'
    ).first.click()
    focused = browser.page.evaluate("document.activeElement.value")
    assert focused == "no", "a hasty Enter deletes nothing"
    browser.press("Enter")
    assert not browser.page.locator("#confirm").is_visible()
    assert stage.agg.get_dead_letter(letter) is not None


def test_dead_letters_are_tried_requeued_and_dropped(browser: Browser, stage: Stage) -> None:
    agg = stage.agg
    letter = stage.dead_letter("tried")
    browser.open("dead-letter", id=letter)
    assert "fails" in browser.submit("try")
    assert "tried 0" in browser.page.locator("main").inner_text()
    for action in ("requeue", "drop"):
        letter = stage.dead_letter(action)
        browser.open("dead", q=action)
        browser.page.locator(f'input[name=id][value="{letter}"]').check()
        assert "1 dead letter with 2 tasks" in browser.submit(action)
    assert agg.get_dead_letter(letter) is None, "it was dropped; a requeued one dies again"


def test_some_tasks_of_a_dead_letter_are_requeued(browser: Browser, stage: Stage) -> None:
    letter = stage.dead_letter("some")
    browser.open("dead-letter", id=letter)
    browser.page.locator("input[name=task]").first.check()
    assert "1 task" in browser.submit("requeue", within="#tasks")
    found = stage.agg.get_dead_letter(letter)
    assert found is not None
    assert found.size == 1


def test_all_that_match_are_dropped_with_progress(browser: Browser, stage: Stage) -> None:
    letters = [stage.dead_letter("bulky") for _ in range(3)]
    browser.open("dead", q="bulky")
    browser.page.locator("[data-matching]").check()
    browser.submit("drop")
    browser.page.get_by_text("3 of 3").wait_for()
    browser.check()
    assert all(stage.agg.get_dead_letter(letter) is None for letter in letters)


def test_policies_are_set_and_removed(browser: Browser, stage: Stage) -> None:
    browser.open("policies")
    browser.page.locator("[name=pattern]:not([type=hidden])").first.fill("weekly:*")
    browser.page.locator("[name=max_size]").fill("7")
    assert "policy counts" in browser.submit("set-policy")
    assert stage.agg.policies()["weekly:*"].max_size == 7
    browser.page.locator("#search").fill("weekly:1")
    browser.press("Enter")
    browser.page.get_by_text("weekly:*").first.wait_for()
    browser.submit("remove-policy", within='tr:has-text("weekly:")')
    assert "weekly:*" not in stage.agg.policies()


def test_who_may_only_look_sees_why_actions_are_grey(
    browse: Callable[..., Browser], stage: Stage
) -> None:
    with served(stage.url, read_only=True) as address:
        window = browse(address)
        for page, query in (("", {}), ("group", {"key": "customer:7"}), ("policies", {})):
            window.open(page, **query)
            assert "Read only" in window.page.locator("main").inner_text()
            buttons = window.page.locator("form[method=post] button[type=submit]")
            assert buttons.count()
            assert all(each.is_disabled() for each in buttons.all())
            assert buttons.first.get_attribute("title")
        window.check()


# --- live ----------------------------------------------------------------------------------------


def test_a_page_shows_news_by_itself(browser: Browser, stage: Stage) -> None:
    browser.open("groups", prefix="news")
    assert browser.page.locator("tbody tr").count() == 0
    stage.agg.add_task(Task("kind", 0, "news:1"))
    browser.page.locator("tbody tr", has_text="news:1").wait_for()
    stage.agg.cancel_group("news:1")
    browser.page.locator("tbody tr", has_text="news:1").wait_for(state="detached")
    browser.check()


def test_a_search_is_answered_while_it_is_typed(browser: Browser) -> None:
    browser.open("groups")
    browser.page.locator("#search").press_sequentially("customer:1")
    browser.page.locator("tbody tr", has_text="customer:19").wait_for()
    browser.page.wait_for_url("**/groups?*prefix=customer*1*")
    shown = browser.page.locator("tbody .main a").all_inner_texts()
    assert sorted(shown) == sorted(["customer:1", *(f"customer:{n}" for n in range(10, 20))])
    browser.check()


# --- keyboard ------------------------------------------------------------------------------------


def focused(browser: Browser) -> str:
    return str(browser.page.evaluate("document.activeElement.innerText || ''"))


def test_all_is_reached_by_keyboard(browser: Browser) -> None:
    browser.open()
    browser.press("Tab")
    assert focused(browser) == "Skip to the content"
    browser.press("?")
    assert browser.page.locator("#keys").is_visible()
    browser.press("Escape")
    assert not browser.page.locator("#keys").is_visible()
    for key, page in (("g", "groups"), ("b", "batches"), ("d", "dead"), ("p", "policies")):
        with browser.page.expect_navigation():
            browser.press("g", key)
        assert browser.page.url == f"{browser.here}/{page}"
    with browser.page.expect_navigation():
        browser.press("g", "g")
    browser.press("/")
    assert browser.page.evaluate("document.activeElement.id") == "search"
    browser.press("Escape", "j", "j", "k")
    row = browser.page.locator("tbody tr").first.inner_text()
    assert focused(browser) == row
    with browser.page.expect_navigation():
        browser.press("Enter")
    assert "/group?" in browser.page.url
    browser.check()


def test_rows_are_selected_by_keyboard(browser: Browser) -> None:
    browser.open("dead", q="locked")
    browser.press("j", "x", "j", "x")
    assert browser.page.locator("input[name=id]:checked").count() == 2
    assert "2 selected" in browser.page.locator("[data-selected]").inner_text()
    browser.press("x")
    assert browser.page.locator("input[name=id]:checked").count() == 1


def test_whoever_tabs_sees_where(browser: Browser) -> None:
    browser.open("group", key="customer:7")
    for _ in range(25):
        browser.press("Tab")
        outline = browser.page.evaluate(
            """() => {
              const style = getComputedStyle(document.activeElement);
              return document.activeElement === document.body || style.outlineStyle !== "none"
                || style.boxShadow !== "none";
            }"""
        )
        assert outline, focused(browser)


# --- what is checked above, checked --------------------------------------------------------------


def test_the_checks_notice_what_they_look_for(browser: Browser) -> None:
    browser.open("policies")
    page = browser.page
    page.evaluate("document.querySelector('main').innerHTML += '<p onclick=\"x\">x</p>'")
    with pytest.raises(AssertionError):
        browser.check()
    browser.open("policies")
    page.evaluate("document.querySelector('main').style.minWidth = '3000px'")
    assert overflow(page)
    page.evaluate("document.querySelector('h1').style.color = 'rgb(200 200 200)'")
    assert low_contrast(page)
    browser.open("policies")
    page.evaluate("canary(1)")
    with pytest.raises(AssertionError):
        browser.check()
    assert NAME in browser.here
