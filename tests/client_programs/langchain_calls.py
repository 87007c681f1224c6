"""Calls of LangChain with the objects of its page; runs in an environment of its own.

``python langchain_calls.py STEP`` in a folder with the page's ``models.py`` prints the result as one line.
"""

from __future__ import annotations

import sys
from typing import Any

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Weather.", "parameters": CITY}}


def call(step: str, models: Any) -> str:
    """Run one step and return its result; the errors of LangChain are not caught."""
    if step == "chat, not streamed":
        return str(models.chat.invoke("Say hello.", max_tokens=24).content)
    if step == "chat, streamed":
        return "".join(str(part.content) for part in models.chat.stream("Say hello.", max_tokens=24))
    if step == "Responses":
        return str(models.responses.invoke("Say hello.", max_tokens=24).text)
    if step == "tool call":
        tool = {**WEATHER, "function": {**WEATHER["function"], "strict": True}}  # type: ignore[dict-item]
        bound = models.chat.bind_tools([tool], tool_choice="weather")
        (one,) = bound.invoke("The weather in Rome?", max_tokens=200).tool_calls
        return f"{one['name']}({one['args']})"
    if step == "embeddings":
        one, two = models.embeddings.embed_documents(["Rome is in Italy.", "A cat sleeps."])
        near = models.embeddings.embed_query("Rome, a city of Italy.")
        if not sum(map(float.__mul__, near, one)) > sum(map(float.__mul__, near, two)):
            raise ValueError("the similar text has not the nearer vector")
        return f"{len(one)} dimensions"
    raise ValueError(step)


STEPS = ("chat, not streamed", "chat, streamed", "Responses", "tool call", "embeddings")

if __name__ == "__main__":
    import models  # type: ignore[import-not-found]

    print(call(sys.argv[1], models))
