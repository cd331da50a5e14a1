"""The interface of records that are read by their number."""

from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Records(Protocol):
    """Records that are read by their number."""

    def __len__(self) -> int:
        """Returns the number of records."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns a record, with its image and its label."""
