"""Messages as the text that the model continues (ChatML), and the state of the conversation."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .wire import Message

# How a message that rejects an answer ends: two versions of pydantic-ai's stock phrases.
REJECTIONS = ("Fix the errors and try again.", "</pyai:retry_feedback>")


@dataclass(frozen=True)
class Conversation:
    """Turns as (role, text) with roles system, user and assistant."""

    turns: tuple[tuple[str, str], ...]

    def prompt(self, answer_start: str = "") -> str:
        """Return the text up to and including ``answer_start``, the part of the answer already written."""
        text = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in self.turns)
        return f"{text}<|im_start|>assistant\n{answer_start}"

    def with_hint(self, hint: str) -> "Conversation":
        """Append ``hint`` to the system message, which is added if missing."""
        first, *rest = self.turns
        if first[0] == "system":
            return replace(self, turns=(("system", f"{first[1]}\n\n{hint}"), *rest))
        return replace(self, turns=(("system", hint), *self.turns))

    def about(self, text: str) -> "Conversation":
        """Replace the last user turn, and all after it, by ``text``."""
        last = max((i for i, (role, _) in enumerate(self.turns) if role == "user"), default=len(self.turns))
        return replace(self, turns=(*self.turns[:last], ("user", text)))


def from_messages(messages: Sequence[Message]) -> Conversation:
    """Convert API messages to turns that the model knows: tool results become user turns, calls become text."""
    turns: list[tuple[str, str]] = []
    for message in messages:
        text = _harmless(message.text)
        if message.role == "tool":
            turns.append(("user", f"Result: {text}\n\nAnswer with these facts."))
        elif message.role == "assistant":
            calls = [f"{call.function.name}({call.function.arguments})" for call in message.tool_calls or []]
            turns.append(("assistant", "\n".join(part for part in (text, *map(_harmless, calls)) if part)))
        else:
            turns.append(("system" if message.role == "developer" else message.role, text))
    return Conversation(tuple(turns))


def tool_result_is_back(messages: Sequence[Message], output_tools: set[str]) -> bool:
    """Return whether a function tool has answered since the last user message.

    A message that only rejects an answer is not a user message, and a reply to an output tool's call is not a result.
    """
    names: dict[str, str] = {}
    back = False
    for message in messages:
        for call in message.tool_calls or []:
            names[call.id] = call.function.name
        if message.role == "user" and not message.text.rstrip().endswith(REJECTIONS):
            back = False
        elif message.role == "tool" and names.get(message.tool_call_id or "") not in output_tools:
            back = True
    return back


def rejections(messages: Sequence[Message]) -> int:
    """Count the answers that the client has rejected."""
    return sum(m.role in ("user", "tool") and m.text.rstrip().endswith(REJECTIONS) for m in messages)


def _harmless(text: str) -> str:
    """Disable what would open or close a turn."""
    return text.replace("<|im_", "<im_").replace("<|endoftext", "<endoftext")
