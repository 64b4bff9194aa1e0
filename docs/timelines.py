"""Draws the timelines of the pages: `python docs/timelines.py`, in the project's folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

FOLDER = Path(__file__).parent / "timelines"

_WIDTH, _LEFT, _RIGHT = 860, 196, 44  # pixels
_TOP, _LANE, _ROW, _AXIS = 40, 60, 19, 30
_CHARACTER = 6.2  # the width of a character of 11 pixels, about
_TASK, _BATCH, _RULE, _QUIET, _TEXT, _GREY = (
    *("#2c6fbb", "#c0392b", "#d5dee5", "#f3f0e4", "#222", "#777"),
)


@dataclass(frozen=True)
class Rule:
    """A period below the tasks of a lane, such as a grace period."""

    start: float
    end: float
    text: str


@dataclass(frozen=True)
class Batch:
    """The tasks that leave at a time."""

    at: float
    tasks: str


@dataclass(frozen=True)
class Lane:
    """A group: the times at which its tasks come, and what becomes of them."""

    label: str
    tasks: Sequence[float]
    batches: Sequence[Batch]
    rules: Sequence[Rule] = ()

    def rows(self) -> list[list[Rule]]:
        """The rules in rows, so that none is over another."""
        rows: list[list[Rule]] = []
        for rule in self.rules:
            free = (row for row in rows if row[-1].end <= rule.start)
            row = next(free, None)
            if row is None:
                rows.append([rule])
            else:
                row.append(rule)
        return rows

    def height(self) -> int:
        """The height of the lane in pixels."""
        return _LANE + _ROW * len(self.rows())


@dataclass(frozen=True)
class Timeline:
    """A picture with a time axis.

    Args:
        name: the name of the file.
        title: what it shows.
        end: the last time; the first is 0.
        ticks: the times with a text, and
        text: the function that makes it.
        lanes: the groups.
        quiet: a period with a background of its own.
    """

    name: str
    title: str
    end: float
    ticks: Sequence[float]
    text: Callable[[float], str]
    lanes: Sequence[Lane]
    quiet: tuple[float, float] | None = None

    def svg(self) -> str:
        """The picture."""
        bottom = _TOP + sum(lane.height() for lane in self.lanes)
        height = bottom + _AXIS
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
            f'viewBox="0 0 {_WIDTH} {height}" role="img" font-family="sans-serif" font-size="13">',
            f"<title>{escape(self.title)}</title>",
            f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
            _label(10, 22, self.title, f'fill="{_TEXT}" font-weight="bold"'),
        ]
        if self.quiet is not None:
            start, end = map(self._x, self.quiet)
            parts.append(_box(start, _TOP, end - start, bottom - _TOP, _QUIET))
        for tick in self.ticks:
            x = self._x(tick)
            parts.append(_line(x, _TOP, x, bottom, "#e3e3e3"))
            parts.append(
                _label(x, bottom + 18, self.text(tick), f'fill="{_GREY}" text-anchor="middle"', 11)
            )
        y = _TOP
        for lane in self.lanes:
            parts += self._lane(lane, y)
            y += lane.height()
        parts.append(_line(10, bottom, _WIDTH - 10, bottom, _GREY))
        return "\n".join([*parts, "</svg>", ""])

    def _x(self, time: float) -> float:
        return round(_LEFT + time * (_WIDTH - _LEFT - _RIGHT) / self.end, 1)

    def _lane(self, lane: Lane, top: int) -> list[str]:
        y = top + 42  # of the tasks
        parts = [
            _line(10, top, _WIDTH - 10, top, "#ccc"),
            _label(10, y + 4, lane.label, f'fill="{_TEXT}"', 12),
            _line(_LEFT, y, _WIDTH - _RIGHT, y, _GREY),
        ]
        for batch in lane.batches:
            x, width = self._x(batch.at), 16 + _CHARACTER * len(batch.tasks)
            parts += [
                _line(x, top + 24, x, y + 14, _BATCH, 2),
                _box(x - width / 2, top + 7, width, 18, _BATCH, 4),
                _label(x, top + 20, batch.tasks, 'fill="white" text-anchor="middle"', 11),
            ]
        for number, time in enumerate(lane.tasks, 1):
            x = self._x(time)
            parts += [
                f'<circle cx="{x}" cy="{y}" r="8.5" fill="{_TASK}" stroke="white"/>',
                _label(x, y + 4, str(number), 'fill="white" text-anchor="middle"', 11),
            ]
        for place, row in enumerate(lane.rows()):
            for rule in row:
                parts += self._rule(rule, y + 15 + place * _ROW)
        return parts

    def _rule(self, rule: Rule, y: float) -> list[str]:
        start, end = self._x(rule.start), self._x(rule.end)
        box = _box(start + 1, y, end - start - 2, 15, _RULE, 3)
        length = _CHARACTER * len(rule.text)
        if length < end - start:
            where = ((start + end) / 2, 'text-anchor="middle"')
        elif end + length < _WIDTH - 10:
            where = (end + 5, "")
        else:
            where = (start - 5, 'text-anchor="end"')
        return [
            box,
            _label(where[0], y + 11.5, rule.text, f'fill="{_TEXT}" {where[1]}'.strip(), 11),
        ]


def _line(x: float, y: float, to_x: float, to_y: float, colour: str, width: float = 1) -> str:
    return f'<path d="M{x:g} {y:g}L{to_x:g} {to_y:g}" stroke="{colour}" stroke-width="{width:g}"/>'


def _box(x: float, y: float, width: float, height: float, colour: str, round_: float = 0) -> str:
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{round_:g}" '
        f'fill="{colour}"/>'
    )


def _label(x: float, y: float, text: str, attributes: str, size: int = 13) -> str:
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" {attributes}>{escape(text)}</text>'


def _minutes(time: float) -> str:
    return f"{time:g} min"


def _seconds(time: float) -> str:
    return f"{time:g} s"


def _clock(start: float, days: Sequence[str] = ()) -> Callable[[float], str]:
    """The time of the day, some hours after a start, with the name of the day if there are any."""

    def text(hours: float) -> str:
        minutes = round((start + hours) * 60)
        day = f"{days[minutes // 1440]} " if days else ""
        return f"{day}{minutes // 60 % 24}:{minutes % 60:02}"

    return text


TIMELINES = [
    Timeline(
        "limits",
        "group_grace_period 2 min, group_max_delay 6 min, group_max_size 4",
        *(10, range(0, 11, 2), _minutes),
        [
            Lane(
                "no new task for 2 min",
                *([0, 1, 2.5], [Batch(4.5, "1-3")]),
                [Rule(2.5, 4.5, "grace period")],
            ),
            Lane(
                "the oldest waits for 6 min",
                *([0, 1.8, 3.6, 5.2, 7], [Batch(6, "1-4"), Batch(9, "5")]),
                [Rule(0, 6, "max delay"), Rule(7, 9, "grace period")],
            ),
            Lane("4 tasks wait", [0, 0.6, 1.2, 1.8], [Batch(1.8, "1-4")]),
        ],
    ),
    Timeline(
        "due-at",
        "due_at 12:00, with a grace period of 20 min",
        *(1, [0, 0.25, 0.5, 0.75, 1], _clock(11.5)),
        [
            Lane(
                "task 2 has due_at",
                *([0, 0.2, 0.42], [Batch(0.5, "1-3")]),
                [Rule(0.2, 0.5, "at the latest"), Rule(0.42, 0.7533, "grace period")],
            ),
            Lane(
                "the grace period ends earlier",
                *([0, 0.08], [Batch(0.4133, "1-2")]),
                [Rule(0.08, 0.4133, "grace period"), Rule(0.08, 0.5, "at the latest")],
            ),
        ],
    ),
    Timeline(
        "not-before",
        "not_before 7:00, with a grace period of 90 min and max size 3",
        *(12, range(0, 13, 2), _clock(20)),
        [
            Lane(
                "night and day",
                *([0.5, 2.7, 7, 11.2], [Batch(2, "1"), Batch(11, "2-3")]),
                [Rule(0.5, 2, "grace period"), Rule(2.7, 11, "not before 7:00")],
            ),
            Lane(
                "full, and not cut",
                *([2.3, 3.5, 4.7], [Batch(11, "1-3")]),
                [Rule(2.3, 11, "not before 7:00")],
            ),
            Lane(
                "the latest time counts",
                *([3, 5], [Batch(11, "1-2")]),
                [Rule(3, 9, "not before 5:00"), Rule(5, 11, "not before 7:00")],
            ),
            Lane(
                "flush(group_key) at 3:00",
                *([3, 5], [Batch(7, "1-2")]),
                [Rule(3, 11, "not before 7:00")],
            ),
        ],
        quiet=(2, 11),
    ),
    Timeline(
        "schedule",
        'group_schedule Cron("0 9 * * *")',
        *(54, [3, 15, 27, 39, 51], _clock(6, ["Mon", "Tue", "Wed"])),
        [
            Lane(
                "tasks on Monday",
                *([0.5, 2.7, 8, 14, 26], [Batch(3, "1-2"), Batch(27, "3-5")]),
                [Rule(0.5, 3, ""), Rule(8, 27, "the next occurrence after task 3")],
            ),
            Lane(
                "one task on Tuesday",
                *([30], [Batch(51, "1")]),
                [Rule(30, 51, "the next occurrence after task 1")],
            ),
        ],
    ),
    Timeline(
        "leading",
        "group_leading with group_min_interval 10 min",
        *(40, range(0, 41, 10), _minutes),
        [
            Lane(
                "the first at once",
                *(
                    [0, 3, 6, 25, 28],
                    [Batch(0, "1"), Batch(10, "2-3"), Batch(25, "4"), Batch(35, "5")],
                ),
                [
                    *(Rule(0, 10, "since the last cut"), Rule(10, 20, "nothing came")),
                    Rule(25, 35, "since the last cut"),
                ],
            ),
        ],
    ),
    Timeline(
        "min-interval",
        "group_min_interval 10 min, with a grace period of 3 min and max size 3",
        *(40, range(0, 41, 10), _minutes),
        [
            Lane(
                "no cut more often",
                *([1, 3, 8, 10, 12, 30], [Batch(6, "1-2"), Batch(16, "3-5"), Batch(33, "6")]),
                [
                    *(Rule(3, 6, "grace"), Rule(6, 16, "since the last cut")),
                    *(Rule(16, 26, "nothing came"), Rule(30, 33, "grace")),
                ],
            ),
        ],
    ),
    Timeline(
        "flush",
        "Task(flush=True), with a grace period of 2 min",
        *(5, range(6), _minutes),
        [
            Lane(
                "task 4 closes the group",
                *([0, 0.8, 1.5, 2.1, 3], [Batch(2.1, "1-4"), Batch(5, "5")]),
                [Rule(3, 5, "grace period")],
            ),
        ],
    ),
    Timeline(
        "death",
        "group_grace_period 3 s, lease_time 10 s",
        *(20, range(0, 21, 5), _seconds),
        [
            Lane(
                "flusher A is killed at 6 s",
                *([0, 1, 2, 9], [Batch(14, "1-3"), Batch(15, "4")]),
                [
                    *(Rule(2, 5, "grace period"), Rule(5, 6, "A"), Rule(6, 13, "lease of A")),
                    *(Rule(9, 12, "grace period"), Rule(13, 14, "B"), Rule(14, 15, "B")),
                ],
            ),
        ],
    ),
]


def main() -> None:
    """Writes all pictures."""
    FOLDER.mkdir(exist_ok=True)
    for each in TIMELINES:
        (FOLDER / f"{each.name}.svg").write_text(each.svg(), "utf-8")


if __name__ == "__main__":
    main()
