"""A MovieLens-like world of our own making, for tests, simulations, and days without a download.

Stage: data. In: `WorldSize` and a seed. Out: a folder in ml-1m's layout, marked as synthetic, with its hidden truth.
Absent: any claim about MovieLens; what is measured here holds here.
"""

from recsys.data.synthetic.size import LIKE_ML_1M, LIKE_ML_25M, LIKE_ML_100K, WorldSize
from recsys.data.synthetic.truth import Truth, load_truth
from recsys.data.synthetic.writer import GENERATOR_VERSION, generate_world

__all__ = [
    "GENERATOR_VERSION",
    "LIKE_ML_1M",
    "LIKE_ML_25M",
    "LIKE_ML_100K",
    "Truth",
    "WorldSize",
    "generate_world",
    "load_truth",
]
