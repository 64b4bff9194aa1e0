"""Numbers, durations and times as texts."""

from __future__ import annotations

from datetime import datetime, timezone


def count(value: float) -> str:
    """A whole number with thin groups of three digits."""
    return f"{value:,.0f}"


def short(value: float) -> str:
    """A number of few digits, such as ``12.3k``."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            scaled = value / limit
            return f"{scaled:.0f}{unit}" if abs(scaled) >= 100 else f"{scaled:.3g}{unit}"
    return f"{value:.0f}" if value == int(value) or abs(value) >= 100 else f"{value:.2g}"


def rate(value: float) -> str:
    """A rate in each second."""
    return f"{short(value)}/s"


def span(seconds: float) -> str:
    """A duration of one or two units, such as ``3 min 20 s``."""
    seconds = abs(seconds)
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, unit, smaller, smaller_unit in (
        (86_400, "d", 3_600, "h"),
        (3_600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            rest = whole % size // smaller
            return (
                f"{whole // size} {unit} {rest} {smaller_unit}"
                if rest
                else (f"{whole // size} {unit}")
            )
    return f"{whole} s"


def compact(seconds: float) -> str:
    """A duration where there is little room, such as ``3m 20s``."""
    if seconds < 0.001:
        return "0"
    words = span(seconds).split()
    units = {"min": "m"}
    pairs = zip(words[::2], words[1::2], strict=True)
    return " ".join(f"{number}{units.get(unit, unit)}" for number, unit in pairs)


def bytesize(value: float) -> str:
    """A number of bytes, such as ``1.2 MiB``."""
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if value >= 1024**power:
            return f"{value / 1024**power:.3g} {unit}"
    return f"{value:.0f} B"


def setting(value: object, name: str) -> str:
    """The value of a setting or limit, with the unit that its name tells."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return span(value)
    if isinstance(value, int) and name.endswith("bytes"):
        return bytesize(value)
    return count(value) if isinstance(value, int) else str(value)


def plural(number: float, one: str, many: str = "") -> str:
    """A number with its noun."""
    return f"{count(number)} {one if number == 1 else many or one + 's'}"


def iso(seconds: float) -> str:
    """A time for the attribute of ``<time>``."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds")


def clock(seconds: float) -> str:
    """A time for people, in UTC; the script shows it in the time zone of the browser."""
    return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%d %H:%M:%S} UTC"
