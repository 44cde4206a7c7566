"""A small language model and an embedding model behind OpenAI's HTTP interface, with no key and no download.

`smollm2-135m-instruct` answers `POST /v1/chat/completions`, `wordllama-256` answers `POST /v1/embeddings`. Any
API key, or none, is accepted. Streaming, pictures and several choices per request are not supported.

The model is far too small to decide by itself when to call a tool or how to write JSON, so the server decides
the form of each answer and the model fills it:

1. `tool_choice` "none", or no tools: `response_format` if there is one, else plain text.
2. No tool result has come back since the last user message: a call of one of the function tools. The model picks
   which by likelihood. Only if there are none: a call of an output tool, that is one named `final_result...`, as
   pydantic-ai names them.
3. A tool result is back: a call of an output tool if there is one; else one more function call if `tool_choice`
   is "required"; else `response_format` if there is one; else plain text.

A message that ends like pydantic-ai's validation feedback rejects the last answer. It is not a new question, so the
same kind of answer is written again, with some randomness.

Every structured answer is valid against its JSON schema. The schema may have what pydantic makes of plain types,
literals, enums, lists, unions and nested models; any other keyword is refused by its name. Strings end after 40 tokens
and lists after 3 items, unless the schema requires more. A client's own max_tokens cuts the answer where it stands,
with finish_reason "length". With `response_format` "json_object", the JSON schema in the system message is followed,
where pydantic-ai's prompted output puts it. Equal requests get equal answers.
"""

from contextlib import AbstractContextManager

from local.web_server import in_a_thread

from .app import create_app


def serve() -> AbstractContextManager[str]:
    """Run the server in a thread of this process; see `local.web_server.in_a_thread`."""
    return in_a_thread(create_app)
