"""WCAG AA: the contrast of the colours in the style sheet, light and dark."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import redisagg.dashboard

SHEET = (Path(redisagg.dashboard.__file__).parent / "static" / "dashboard.css").read_text()

TEXTS = [
    *((text, ground) for text in ("text", "muted") for ground in ("bg", "surface", "raised")),
    *(("accent", ground) for ground in ("bg", "surface", "raised", "accent-soft")),
    *((level, f"{level}-soft") for level in ("ok", "warn", "bad", "info")),
    *((level, ground) for level in ("ok", "warn", "bad") for ground in ("bg", "surface")),
    *(("text", f"{level}-soft") for level in ("ok", "warn", "bad", "info")),
    *(("muted", f"{level}-soft") for level in ("ok", "warn", "bad", "info")),
    ("accent-text", "accent"),
    ("accent", "info-soft"),
    ("accent", "bad-soft"),
    ("accent", "warn-soft"),
]

GRAPHICS = [
    *((line, "surface") for line in ("c1", "c2", "c3", "c4", "line-strong")),
    *((dot, ground) for dot in ("ok", "warn", "bad") for ground in ("surface", "accent-soft")),
]


def palette(dark: bool) -> dict[str, str]:
    light, _, rest = SHEET.partition("@media (prefers-color-scheme: dark)")
    block = rest[: rest.index("}")] if dark else light
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))


def luminance(colour: str) -> float:
    def linear(byte: int) -> float:
        part = byte / 255
        return part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4

    red, green, blue = (linear(int(colour[at : at + 2], 16)) for at in (1, 3, 5))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize(
    ("pairs", "least"), [(TEXTS, 4.5), (GRAPHICS, 3.0)], ids=["text", "graphics"]
)
def test_contrast(dark: bool, pairs: list[tuple[str, str]], least: float) -> None:
    colours = palette(dark)
    weak = {
        (front, ground): round(contrast(colours[front], colours[ground]), 2)
        for front, ground in pairs
        if contrast(colours[front], colours[ground]) < least
    }
    assert not weak
