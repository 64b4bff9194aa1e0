"""The entry point of the command `redisagg` and of `python -m redisagg`."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command line; prints the package to install if the extra `cli` is missing."""
    try:
        import click  # noqa: F401
        import rich  # noqa: F401
    except ImportError as error:
        print(
            f"redisagg: the command line needs the package {error.name!r}; "
            "install it with: pip install 'redisagg[cli]'",
            file=sys.stderr,
        )
        raise SystemExit(2) from None
    from redisagg.cli.app import cli

    cli(prog_name="redisagg")


if __name__ == "__main__":
    main()
