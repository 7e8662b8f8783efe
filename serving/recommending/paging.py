"""Pages of one list that stay consistent: a cursor that carries the rest of the list itself.

Nothing is remembered: every worker can go on with a cursor, after new events and after another model came. A list has
LONGEST_LIST items at most, so that a cursor stays shorter than the request lines that proxies let pass. Probabilities
and scores travel as they are. What the user rated since is left out when the page is made; an item that the catalogue
of today does not have is skipped.

The cursor ends with a keyed hash. With an API key in the settings, nobody else can make one. Without, the key is the
name of the data set: it then finds damage and mix-ups, and who forges a cursor sees the items that he put into it.

Layout: 2 bytes length of the header, header (JSON), then for n items int64 ids, float32 scores, watch and like
probabilities, uint32 retrievers as bits; 16 bytes of hash. All little-endian.
"""

import base64
import binascii
import hashlib
import hmac
import struct
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from recsys.arrays import FloatArray, IntArray
from recsys.limits import LARGEST_ID
from serving.http.problems import ProblemError

LONGEST_LIST = 200
HASH_BYTES = 16
COLUMNS = ("<i8", "<f4", "<f4", "<f4", "<u4")
ROW_BYTES = sum(np.dtype(column).itemsize for column in COLUMNS)
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
    retriever_names: list[Text] = Field(max_length=32)
    shown: int = Field(ge=0, le=LONGEST_LIST)
    n: int = Field(ge=0, le=LONGEST_LIST)


@dataclass(frozen=True)
class PageCursor:
    """item_ids (n,) raw; scores, watch, like (n,) float32; retrievers (n,) uint32, bit s for `retriever_names[s]`."""

    header: Header
    item_ids: IntArray
    scores: FloatArray
    watch: FloatArray
    like: FloatArray
    retrievers: npt.NDArray[np.uint32]

    def after(self, place: int, shown: int) -> "PageCursor":
        """What follows from `place` on, when `shown` more items have been shown."""
        left = len(self.item_ids) - place
        return PageCursor(
            self.header.model_copy(update={"n": left, "shown": self.header.shown + shown}),
            self.item_ids[place:],
            self.scores[place:],
            self.watch[place:],
            self.like[place:],
            self.retrievers[place:],
        )


def key_of(dataset: str, secret: str | None) -> bytes:
    """Of the hash; the same in every worker."""
    return hashlib.blake2b(f"{dataset}\0{secret or ''}".encode(), digest_size=32).digest()


def encode(cursor: PageCursor, key: bytes) -> str:
    header = orjson.dumps(cursor.header.model_dump())
    values: list[npt.NDArray[Any]] = [cursor.item_ids, cursor.scores, cursor.watch, cursor.like, cursor.retrievers]
    columns = [value.astype(column).tobytes() for value, column in zip(values, COLUMNS, strict=True)]
    content = b"".join([LENGTH.pack(len(header)), header, *columns])
    return base64.urlsafe_b64encode(content + _hash(content, key)).rstrip(b"=").decode()


def decode(cursor: str, key: bytes) -> PageCursor:
    """Raises ProblemError 422 for anything that `encode` did not make with this key."""
    try:
        whole = base64.b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        content, found = whole[:-HASH_BYTES], whole[-HASH_BYTES:]
        if base64.urlsafe_b64encode(whole).rstrip(b"=").decode() != cursor:
            raise ValueError("spare bits")  # base64 has several texts for the same bytes
        if not hmac.compare_digest(found, _hash(content, key)):
            raise ValueError("hash")
        begin = LENGTH.size + LENGTH.unpack_from(content)[0]
        header = Header.model_validate_json(content[LENGTH.size : begin])
        if len(content) != begin + header.n * ROW_BYTES:
            raise ValueError("length")
    except (binascii.Error, struct.error, UnicodeEncodeError, ValidationError, ValueError) as error:
        detail = "The cursor is damaged, or belongs to another service; ask for the first page again."
        raise ProblemError(422, "invalid-cursor", detail) from error
    columns = []
    for column in COLUMNS:
        columns.append(np.frombuffer(content, column, header.n, begin))
        begin += columns[-1].nbytes
    return PageCursor(header, *columns)


def _hash(content: bytes, key: bytes) -> bytes:
    return hashlib.blake2b(content, key=key, digest_size=HASH_BYTES).digest()
