"""Cron expressions in a time zone, also over a change of its clocks."""

from __future__ import annotations

import copy
import pickle
import sys
from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

import redisagg.schedule
from redisagg import Cron
from redisagg.errors import InvalidConfig

BERLIN = ZoneInfo("Europe/Berlin")
SPRING = datetime(2026, 3, 29, 1, tzinfo=timezone.utc)  # from 2:00 to 3:00 in Berlin
AUTUMN = datetime(2026, 10, 25, 1, tzinfo=timezone.utc)  # from 3:00 to 2:00 in Berlin


def _in_berlin(*moment: int, fold: int = 0) -> datetime:
    return datetime(*moment, tzinfo=BERLIN, fold=fold)  # type: ignore[arg-type,misc]


def _occurrences(cron: Cron, after: datetime, until: datetime) -> list[str]:
    """The occurrences in a period, each with its local time and its offset."""
    found = []
    while (after := cron.next_after(after)).timestamp() <= until.timestamp():
        found.append(after.isoformat())
    return found


# --- days without a change ------------------------------------------------------------------------


def test_the_next_weekday_at_nine() -> None:
    cron = Cron("0 9 * * 1-5", tz="Europe/Berlin")
    friday = _in_berlin(2026, 11, 27, 9)
    assert cron.next_after(friday - timedelta(seconds=1)).isoformat() == friday.isoformat()
    assert cron.next_after(friday).isoformat() == "2026-11-30T09:00:00+01:00"


def test_a_moment_in_another_time_zone() -> None:
    moment = datetime(2026, 7, 1, 6, 59, tzinfo=timezone.utc)
    following = Cron("0 9 * * *", tz="Europe/Berlin").next_after(moment)
    assert following.isoformat() == "2026-07-01T09:00:00+02:00"


def test_milliseconds_return_milliseconds() -> None:
    assert Cron("* * * * *").next_after(59_999) == 60_000
    assert Cron("* * * * *").next_after(60_000) == 120_000
    assert Cron("* * * * *").next_after(-1) == 0


def test_a_day_of_the_month_or_of_the_week() -> None:
    cron = Cron("0 0 13 * FRI")
    assert _occurrences(
        cron,
        datetime(2026, 11, 1, tzinfo=timezone.utc),
        datetime(2026, 11, 15, tzinfo=timezone.utc),
    ) == [f"2026-11-{day}T00:00:00+00:00" for day in ("06", "13")]


# --- days with a change ---------------------------------------------------------------------------


def test_a_skipped_hour_takes_the_next_valid_minute() -> None:
    cron = Cron("30 2 * * *", tz="Europe/Berlin")
    start, end = SPRING - timedelta(hours=1), SPRING + timedelta(days=2)
    assert _occurrences(cron, start, end) == [
        "2026-03-29T03:00:00+02:00",
        "2026-03-30T02:30:00+02:00",
        "2026-03-31T02:30:00+02:00",
    ]


def test_a_skipped_hour_holds_no_occurrence_twice() -> None:
    cron = Cron("*/20 * * * *", tz="Europe/Berlin")
    start, end = SPRING - timedelta(minutes=20), SPRING + timedelta(minutes=20)
    assert _occurrences(cron, start - timedelta(seconds=1), end) == [
        "2026-03-29T01:40:00+01:00",
        "2026-03-29T03:00:00+02:00",
        "2026-03-29T03:20:00+02:00",
    ]


def test_a_skipped_day_takes_the_first_minute_after_it() -> None:
    start = datetime(2011, 12, 29, 22, 30, tzinfo=timezone.utc)  # Samoa had no 30 December
    assert Cron("0 12 * * *", tz="Pacific/Apia").next_after(start).isoformat() == (
        "2011-12-31T00:00:00+14:00"
    )


@pytest.mark.parametrize("expression", ["30 2 * * *", "30 * * * *"])
def test_a_repeated_hour_counts_once(expression: str) -> None:
    cron = Cron(expression, tz="Europe/Berlin")
    start, end = AUTUMN - timedelta(minutes=59), AUTUMN + timedelta(minutes=59)
    assert _occurrences(cron, start, end) == ["2026-10-25T02:30:00+02:00"]


def test_a_moment_in_the_repeated_hour_takes_what_is_behind_it() -> None:
    cron = Cron("*/5 * * * *", tz="Europe/Berlin")
    second_time = _in_berlin(2026, 10, 25, 2, 5, fold=1)
    assert cron.next_after(second_time).isoformat() == "2026-10-25T03:00:00+01:00"


_CRONS = st.builds(
    "{} {} {} * {}".format,
    st.sampled_from(["*", "*/7", "0", "30", "15-45/10"]),
    st.sampled_from(["*", "*/2", "0", "2", "1-3", "23"]),
    st.sampled_from(["*", "1", "L", "*/9"]),
    st.sampled_from(["*", "0", "1-5", "SUN#2"]),
)
_ZONES = st.sampled_from(
    [
        *("UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"),
        *("America/Sao_Paulo", "Pacific/Apia", "Africa/Casablanca"),
    ]
)
_MS = 1000
_CHANGES = [int(each.timestamp()) * _MS for each in (SPRING, AUTUMN)]
_MOMENTS = st.integers(0, 2_200_000_000_000) | st.builds(
    int.__add__, st.sampled_from(_CHANGES), st.integers(-7_200_000, 7_200_000)
)


@given(_CRONS, _ZONES, _MOMENTS)
def test_occurrences_are_later_and_the_same_for_everybody(
    expression: str, zone: str, moment: int
) -> None:
    cron = Cron(expression, tz=zone)
    following = cron.next_after(moment)
    assert following > moment
    assert following % 60_000 == 0
    # What was computed before changes nothing, and no moment in between has another answer.
    between = (moment + following) // 2
    assert Cron(expression, tz=zone).next_after(between) == following
    assert cron.next_after(between) == following
    assert cron.next_after(following - 1) == following
    assert cron.next_after(following) > following


@given(_CRONS, _ZONES, _MOMENTS)
def test_no_local_time_occurs_twice(expression: str, zone: str, moment: int) -> None:
    cron = Cron(expression, tz=zone)
    locals_: list[datetime] = []
    for _ in range(10):
        moment = cron.next_after(moment)
        found = datetime.fromtimestamp(moment / _MS, ZoneInfo(zone))
        assert found.fold == 0
        locals_.append(found.replace(tzinfo=None))
    assert locals_ == sorted(set(locals_))


# --- the object -----------------------------------------------------------------------------------


def test_occurrences_are_computed_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[int] = []
    compute = Cron._compute

    def counted(self: Cron, moment: int) -> tuple[int, ...]:
        computed.append(moment)
        return compute(self, moment)

    monkeypatch.setattr(Cron, "_compute", counted)
    cron = Cron("0 * * * *")
    computed.clear()
    hour = 3_600_000
    for moment in range(0, 4 * hour, 60_000):  # a new task every minute
        assert cron.next_after(moment) == (moment // hour + 1) * hour
    assert computed == [0]
    assert cron.next_after(4 * hour) == 5 * hour  # it goes on behind them,
    assert cron.next_after(hour) == 2 * hour  # and when the clock was set back
    assert computed == [0, 4 * hour, hour]


def test_it_is_a_value() -> None:
    cron = Cron(" 0  9 * * 1-5", tz="Europe/Berlin")
    cron.next_after(0)
    assert cron == Cron("0 9 * * 1-5", tz="Europe/Berlin") != Cron("0 9 * * 1-5")
    assert len({cron, Cron("0 9 * * 1-5", tz="Europe/Berlin")}) == 1
    assert repr(cron) == "Cron(expression='0 9 * * 1-5', tz='Europe/Berlin')"
    assert pickle.loads(pickle.dumps(cron)) == copy.deepcopy(cron) == cron
    with pytest.raises(AttributeError):
        cron.tz = "UTC"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("expression", "tz", "says"),
    [
        ("0 9 * *", "UTC", "five fields"),
        ("* * * * * *", "UTC", "five fields"),
        ("@daily", "UTC", "five fields"),
        ("", "UTC", "five fields"),
        ("60 * * * *", "UTC", "minute"),
        ("0 24 * * *", "UTC", "hour"),
        ("0 0 L/x * *", "UTC", "day-of-month"),
        ("0 0 * * L", "UTC", "day-of-week"),
        ("0 0 * * 1#2/3", "UTC", "is no cron expression"),
        ("0 0 30 2 *", "UTC", "day-of-month"),
        ("0 0 */31 * MON#3", "UTC", "no moment matches"),
        (5, "UTC", "must be a str, not int"),
        ("0 9 * * *", "Europe/Bonn", "no time zone 'Europe/Bonn'"),
        ("0 9 * * *", "Europe", "no time zone 'Europe'"),
        ("0 9 * * *", "../etc/passwd", "no time zone"),
        ("0 9 * * *", "", "no time zone"),
        ("0 9 * * *", None, "tz must be the name"),
        ("0 9 * * *", BERLIN, "tz must be the name"),
    ],
)
def test_what_is_no_schedule_is_refused(expression: object, tz: object, says: str) -> None:
    with pytest.raises(InvalidConfig, match=says):
        Cron(expression, tz=tz)  # type: ignore[arg-type]


def test_a_datetime_without_a_time_zone_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="has no time zone"):
        Cron("0 9 * * *").next_after(datetime(2026, 1, 1))


@pytest.mark.parametrize("moment", [253_402_300_799_999, 2**63, -(2**63)])
def test_a_moment_behind_which_there_is_none_is_refused(moment: int) -> None:
    with pytest.raises(InvalidConfig, match="no moment matches"):
        Cron("0 9 * * *").next_after(moment)


def test_the_error_names_the_extra_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cronsim", None)
    with pytest.raises(InvalidConfig, match=r"pip install 'redisagg\[schedule\]'"):
        Cron("0 9 * * *")


def test_the_error_names_the_extra_that_has_time_zones(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> ZoneInfo:
        raise KeyError(name)

    monkeypatch.setattr(redisagg.schedule, "ZoneInfo", none)
    with pytest.raises(InvalidConfig, match=r"pip install 'redisagg\[schedule\]'"):
        Cron("0 9 * * *", tz="Europe/Berlin")
