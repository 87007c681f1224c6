"""LangChain: chats over the Responses API, a retriever over a vector store, embeddings, and a role with memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import pytest
from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.retrievers import BaseRetriever
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from openai import BadRequestError, NotFoundError, OpenAI

from tests.assistant_clients.site import EMBEDDER, MODEL, ROLE, ServiceWithState

FAST = "fake: tokens=3 itl_ms=0 ttft_ms=0"


class VectorStoreRetriever(BaseRetriever):
    """A retriever over ``POST /v1/vector_stores/{id}/search``, as docs/clients.md shows it."""

    client: Any
    store: str
    results: int = 4

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        found = self.client.vector_stores.search(self.store, query=query, max_num_results=self.results)
        return [
            Document(
                "\n".join(part.text for part in hit.content), metadata={"source": hit.filename, "score": hit.score}
            )
            for hit in found
        ]


@tool
def weather(place: str) -> str:
    """Return the weather of a place."""
    return f"sunny in {place}"


@pytest.fixture(scope="module")
def client(stateful: ServiceWithState) -> Iterator[OpenAI]:
    with stateful.client(stateful.new_user("langchain")) as client:
        yield client


@pytest.fixture(scope="module")
def connections() -> Iterator[httpx.Client]:
    """The connections of LangChain's classes, which do not close those that they open themselves."""
    with httpx.Client(timeout=60) as opened:
        yield opened


@pytest.fixture(scope="module")
def service(stateful: ServiceWithState, client: OpenAI, connections: httpx.Client) -> dict[str, Any]:
    """The options of LangChain's classes by which they reach the service."""
    return {
        "base_url": f"{stateful.url}/v1",
        "api_key": client.api_key,
        "max_retries": 0,
        "http_client": connections,
    }


@pytest.fixture(scope="module")
def store(client: OpenAI) -> str:
    """A store that the role of the site uses as its memory."""
    made = client.vector_stores.create(name="handbook")
    for name, text in (
        ("rome.md", "Rome is the capital of Italy. Its river is the Tiber."),
        ("oslo.md", "Oslo is the capital of Norway. It is at a fjord."),
    ):
        done = client.vector_stores.files.upload_and_poll(vector_store_id=made.id, file=(name, text.encode()))
        assert done.status == "completed"
    return made.id


def model(service: dict[str, Any], **options: Any) -> ChatOpenAI:
    return ChatOpenAI(**{"model": MODEL, "use_responses_api": True, **service, **options})


def test_a_chat_continues_by_the_id_of_the_response(service: dict[str, Any], stateful: ServiceWithState) -> None:
    chat = model(service, use_previous_response_id=True)
    first = HumanMessage(f"first {FAST}")
    reply = chat.invoke([first])
    assert (reply.text, reply.response_metadata["status"]) == ("the quick brown", "completed")
    assert reply.usage_metadata is not None
    assert reply.usage_metadata["output_tokens"] == 3
    chat.invoke([first, reply, HumanMessage(f"second {FAST}")])
    assert stateful.last()["body"].count("first") == 1
    assert "the quick brown" in stateful.last()["body"], "the assistant has the first turn"


def test_a_chat_is_streamed(service: dict[str, Any]) -> None:
    pieces = list(model(service).stream(FAST))
    assert "".join(piece.text for piece in pieces) == "the quick brown"
    assert len([piece for piece in pieces if piece.text]) == 3


def test_a_tool_is_called_and_its_result_continues(service: dict[str, Any], stateful: ServiceWithState) -> None:
    chat = model(service, use_previous_response_id=True)
    asked = HumanMessage(f"weather? {FAST}")
    reply = chat.bind_tools([weather], tool_choice="required").invoke([asked])
    [call] = reply.tool_calls
    assert (call["name"], call["args"]) == ("weather", {"place": "Rome"})
    result = ToolMessage(weather.invoke(call["args"]), tool_call_id=call["id"])
    assert chat.invoke([asked, reply, result]).text == "the quick brown"
    assert "sunny in Rome" in stateful.last()["body"]


def test_the_retriever_finds_passages_and_abstains(client: OpenAI, store: str) -> None:
    retriever = VectorStoreRetriever(client=client, store=store, results=1)
    [found] = retriever.invoke("the capital of Italy")
    assert found.metadata["source"] == "rome.md"
    assert "Tiber" in found.page_content
    assert retriever.invoke("столица Норвегии")[0].metadata["source"] == "oslo.md"
    assert retriever.invoke("how do I bake sourdough bread") == []
    with pytest.raises(NotFoundError):
        VectorStoreRetriever(client=client, store="vs_none").invoke("x")


def test_the_hosted_tool_file_search_cites_its_file(service: dict[str, Any], store: str) -> None:
    search = {"type": "file_search", "vector_store_ids": [store]}
    reply = model(service).bind_tools([search]).invoke("capital of Italy? fake: search=1 tokens=2")
    blocks: Any = reply.content_blocks
    [citation] = [one for block in blocks for one in block.get("annotations", [])]
    assert citation["title"] == "rome.md"


def test_embeddings_are_the_same_as_floats_and_as_base64(
    service: dict[str, Any], client: OpenAI, store: str
) -> None:
    embedder = OpenAIEmbeddings(model=EMBEDDER, check_embedding_ctx_length=False, **service)
    one, other = embedder.embed_documents(["Rome", "Oslo"])
    floats = client.embeddings.create(model=EMBEDDER, input=["Rome", "Oslo"], encoding_format="float").data
    assert [floats[0].embedding, floats[1].embedding] == [pytest.approx(one), pytest.approx(other)]
    assert any(one)


def test_a_role_with_memory_adds_passages_to_a_plain_chat(
    service: dict[str, Any], stateful: ServiceWithState, store: str
) -> None:
    chat = model(service, model=ROLE, use_responses_api=False)
    chat.invoke(f"the capital of Italy {FAST}")
    assert "river is the Tiber" in stateful.last()["body"]
    chat.invoke(f"{FAST} how do I bake sourdough bread")
    assert "Tiber" not in stateful.last()["body"]


def test_an_invalid_request_is_an_exception_with_the_field(service: dict[str, Any]) -> None:
    with pytest.raises(BadRequestError) as raised:
        model(service).bind_tools([{"type": "code_interpreter"}]).invoke("x")
    assert raised.value.param == "tools[0].type"
