"""A MovieLens-like world of our own making, for tests and days without a download; it is not MovieLens."""

from recsys.data.synthetic.size import WorldSize
from recsys.data.synthetic.writer import generate_world

__all__ = ["WorldSize", "generate_world"]
