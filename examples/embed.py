"""A batched function: calls for single texts, of any number of processes, share calls of a model.

python examples/embed.py             embeds some texts and prints the calls of the model
redisagg worker examples.embed:app   runs the function; start it in the project's folder
"""

from __future__ import annotations

import asyncio

from redisagg import App, TaskFailed

app = App.from_env()


def tokens(text: str) -> int:
    """What a tokenizer would return."""
    return len(text.split())


@app.batched(max_size=64, max_weight=8_000, weight=tokens, grace=0.05)
def embed(texts: list[str]) -> list[list[float] | Exception]:
    """One call of a model for at most 64 texts and 8,000 tokens; an empty text fails alone."""
    print(f"{len(texts)} texts in one call")
    return [[float(len(text))] if text else ValueError("no text") for text in texts]


async def serve() -> None:
    """Five requests at the same time, as in a web application."""
    vectors = await asyncio.gather(*(embed("word " * n + "end") for n in range(5)))
    print(vectors)
    await app.aclose()


def main() -> None:
    """Runs the function in this process, and calls it from an event loop and from a thread."""
    with app:
        asyncio.run(serve())
        try:
            embed.call("")
        except TaskFailed as error:
            print(error.reason)


if __name__ == "__main__":
    main()
