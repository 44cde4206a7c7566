"""What jobs and batches have in common: listing, ending, and the outcomes that tests ask for."""

from abc import ABC, abstractmethod
from collections import deque
from typing import Any

from fastapi import APIRouter, Request

from local.api_error import ApiError

from .store import End, Kept, Outcome, Store, page

ENDED = ("succeeded", "completed", "failed", "expired", "cancelled")
UNNAMED_ERROR = {"code": "server_error", "message": "This failure was asked for.", "param": None}


class Collection(ABC):
    """All jobs, or all batches. `outcomes` are queued for the next ones.

    :param path: of the API, such as "/v1/batches".
    :param kept: those in the store.
    """

    def __init__(self, path: str, store: Store, kept: dict[str, Kept]) -> None:
        self.store = store
        self.kept = kept
        self.outcomes: deque[Outcome] = deque()
        self.router = APIRouter(prefix=path)
        self.router.add_api_route("", self.listing)
        self.router.add_api_route("/{name}", self.retrieve)
        self.router.add_api_route("/{name}/cancel", self.cancel, methods=["POST"])

    async def listing(self, request: Request, after: str | None = None, limit: int = 20) -> dict[str, Any]:
        """Return a page, the newest first; with `metadata[key]=value`, only of those that have it."""
        wanted = {k[len("metadata[") : -1]: v for k, v in request.query_params.items() if k.startswith("metadata[")}
        return page([each for each in self.all() if wanted.items() <= (each["metadata"] or {}).items()], after, limit)

    async def retrieve(self, name: str) -> dict[str, Any]:
        """Return one in its current state."""
        return self.get(name).shown

    async def cancel(self, name: str) -> dict[str, Any]:
        """Cancel one."""
        return self.end(name, "cancelled")

    def add(self, shown: dict[str, Any], began: float) -> Kept:
        """Store a new one, with the next outcome."""
        outcome = self.outcomes.popleft() if self.outcomes else Outcome()
        shown["status"] = outcome.hold or shown["status"]
        new = self.kept[shown["id"]] = Kept(shown=shown, began=began, outcome=outcome)
        self.store.save()
        return new

    def all(self) -> list[dict[str, Any]]:
        """Return all in their current state, the newest first."""
        self.bring_up_to_date()
        return [each.shown for each in reversed(self.kept.values())]

    def get(self, name: str) -> Kept:
        """Return the one with this id, in its current state."""
        self.bring_up_to_date()
        if name not in self.kept:
            raise ApiError(f"There is nothing with the id {name}.", code="not_found", status=404)
        return self.kept[name]

    def end(self, name: str, status: End) -> dict[str, Any]:
        """End one that has not ended."""
        each = self.get(name)
        if each.shown["status"] in ENDED:
            raise ApiError(f"{name} has ended: it is {each.shown['status']}.", code="invalid_state")
        self.finish(each, status)
        return each.shown

    @abstractmethod
    def bring_up_to_date(self) -> None:
        """Do what is due by the clock, or was left by an earlier process."""

    @abstractmethod
    def finish(self, each: Kept, status: End) -> None:
        """End this one."""
