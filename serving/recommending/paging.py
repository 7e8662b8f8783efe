"""Pages of one list that stay consistent: a cursor that carries the rest of the list itself.

Nothing is remembered: every worker can go on with a cursor, after new events and after another model came. A list has
LONGEST_LIST items at most, so that a cursor stays shorter than the request lines that proxies let pass. What the user
rated since is left out when the page is made; an item that the catalogue of today does not have is skipped.

The cursor ends with a keyed hash. With an API key in the settings, nobody else can make one. Without, the key is the
name of the data set: it then finds damage and mix-ups, and who forges a cursor sees the items that he put into it.

Layout: 2 bytes length of the header (little-endian), header (JSON), n rows of ROW, 16 bytes of hash.
"""

import base64
import hashlib
import hmac
import struct
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import orjson
from pydantic import BaseModel, ConfigDict, Field

from recsys.limits import LARGEST_ID
from serving.http.problems import ProblemError

LONGEST_LIST = 200
HASH_BYTES = 16
# An item of a list. watch, like: NaN where there is no probability; retrievers: bit s for retriever s.
ROW = np.dtype(
    [("item_id", "<i8"), ("score", "<f4"), ("watch", "<f4"), ("like", "<f4"), ("retrievers", "<u4")],
)
Rows = npt.NDArray[np.void]  # (n,) of ROW, best first
LENGTH = struct.Struct("<H")
Text = Annotated[str, Field(max_length=100)]


class Header(BaseModel):
    """What a page says besides its items. `shown`: items of the list before; `n`: items in the cursor."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    user_id: int | None = Field(ge=0, le=LARGEST_ID)
    version: int = Field(ge=0, le=2**31)
    bundle_id: str = Field(max_length=200)
    cold_start: bool
    degraded: list[Text] = Field(max_length=20)
    experiment: Text | None = None
    arm: Text | None = None
    retriever_names: list[Text] = Field(max_length=32)
    shown: int = Field(ge=0, le=LONGEST_LIST)
    n: int = Field(ge=0, le=LONGEST_LIST)


@dataclass(frozen=True)
class PageCursor:
    header: Header
    rows: Rows

    def after(self, place: int, shown: int) -> "PageCursor":
        """What follows from `place` on, when `shown` more items have been shown."""
        update = {"n": len(self.rows) - place, "shown": self.header.shown + shown}
        return PageCursor(self.header.model_copy(update=update), self.rows[place:])


def key_of(dataset: str, secret: str | None) -> bytes:
    """Of the hash; the same in every worker."""
    return hashlib.blake2b(f"{dataset}\0{secret or ''}".encode(), digest_size=32, person=b"rows").digest()


def encode(cursor: PageCursor, key: bytes) -> str:
    header = orjson.dumps(cursor.header.model_dump())
    content = LENGTH.pack(len(header)) + header + cursor.rows.tobytes()
    return base64.urlsafe_b64encode(content + _hash(content, key)).rstrip(b"=").decode()


def decode(cursor: str, key: bytes) -> PageCursor:
    """Raises ProblemError 422 for anything that `encode` did not make with this key."""
    try:
        whole = base64.b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        content = whole[:-HASH_BYTES]
        if base64.urlsafe_b64encode(whole).rstrip(b"=").decode() != cursor:
            raise ValueError("spare bits")  # base64 has several texts for the same bytes
        if not hmac.compare_digest(whole[-HASH_BYTES:], _hash(content, key)):
            raise ValueError("hash")
        begin = LENGTH.size + LENGTH.unpack_from(content)[0]
        header = Header.model_validate_json(content[LENGTH.size : begin])
        if len(content) != begin + header.n * ROW.itemsize:
            raise ValueError("length")
    except (struct.error, ValueError) as error:  # base64, ASCII, JSON and the header's limits raise ValueErrors
        detail = "The cursor is damaged, or belongs to another service; ask for the first page again."
        raise ProblemError(422, "invalid-cursor", detail) from error
    rows: npt.NDArray[Any] = np.frombuffer(content, ROW, header.n, begin)
    return PageCursor(header, rows)


def _hash(content: bytes, key: bytes) -> bytes:
    return hashlib.blake2b(content, key=key, digest_size=HASH_BYTES).digest()
