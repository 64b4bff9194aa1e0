"""Numbers, durations and texts from outside, as pages show them."""

from __future__ import annotations

import pytest

from redisagg.dashboard.formats import bytesize, compact, plural, setting, short, span
from redisagg.dashboard.rendering import clip, visible


@pytest.mark.parametrize(
    ("seconds", "text", "brief"),
    [
        (0, "0 ms", "0"),
        (0.25, "250 ms", "250ms"),
        (9.96, "10.0 s", "10.0s"),
        (59.4, "59 s", "59s"),
        (59.6, "1 min", "1m"),
        (200, "3 min 20 s", "3m 20s"),
        (3_600, "1 h", "1h"),
        (90_061, "1 d 1 h", "1d 1h"),
    ],
)
def test_durations(seconds: float, text: str, brief: str) -> None:
    assert (span(seconds), compact(seconds)) == (text, brief)


def test_numbers() -> None:
    found = [short(each) for each in (0, 7, 0.25, 999, 1_234, 56_789, 999_999, 1e6, 2.5e9)]
    assert found == ["0", "7", "0.25", "999", "1.23k", "56.8k", "1000k", "1M", "2.5G"]
    assert [bytesize(each) for each in (5, 2048, 3 << 20)] == ["5 B", "2 KiB", "3 MiB"]
    assert (plural(1, "batch", "batches"), plural(2_000, "task")) == ("1 batch", "2,000 tasks")
    given = (("max_size", 1000), ("max_bytes", 2048), ("grace_period", 90.0), ("leading", True))
    assert [setting(value, name) for name, value in given] == [
        "1,000",
        "2 KiB",
        "1 min 30 s",
        "yes",
    ]
    assert setting(None, "max_pending_tasks") == "none"


def test_invisible_characters_are_shown() -> None:
    assert visible("a\x00\x1b[31m\u202eb\u2066\ud800") == r"a\x00\x1b[31m\u202eb\u2066\ud800"
    assert visible("a\nb\tc") == "a\nb    c"
    assert visible("a\u00a0b") == "a·b"
    assert visible("grüße 你好 🎉") == "grüße 你好 🎉"
    assert clip("a\nb" * 100, 10) == "a ba ba b…"
