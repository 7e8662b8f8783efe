"""The two-tower model: a causal sequence encoder for users, id embedding plus content for items.

The score is the inner product of a user's and an item's vector. The training loop is in `two_tower_training`; requests
do without torch (`two_tower_retriever`).

The user tower sees tokens (item, stars, time since the previous event), a start token that carries the static
profile, and, at the end, the time since the last event. Attention has a learned bias by distance instead of absolute
positions. Rows are left-aligned: the distance to the start token tells how long the history is. The item tower drops
the id embedding of whole items at random while training, so that content alone must do; an item without ratings still
gets a useful vector.

Shapes: B rows, L tokens, D dimensions, N items, G genres, W words, H heads, Q queries.
"""

import numpy as np
import torch
from torch import Tensor, nn

from recsys.arrays import FloatArray, IntArray
from recsys.features.catalogue import Catalogue
from recsys.features.state import StateBatch
from recsys.retrieval.tower_inputs import GAP_LEVELS, RATING_LEVELS, TowerShape, TowerWeights, tokens_of

FIRST_YEAR, YEARS_PER_LEVEL, YEAR_LEVELS = 1900, 5, 30


class ItemTower(nn.Module):
    """Item row numbers -> (.., D) vectors."""

    genres: Tensor
    years: Tensor
    words: Tensor

    def __init__(self, shape: TowerShape, catalogue: Catalogue) -> None:
        super().__init__()
        self.id_dropout = shape.id_dropout
        self.ids = nn.Embedding(shape.n_items, shape.dim)
        self.genre = nn.Linear(shape.n_genres, shape.dim) if shape.n_genres else None
        self.year = nn.Embedding(YEAR_LEVELS, shape.dim)
        self.word = nn.EmbeddingBag(shape.n_words, shape.dim, mode="mean", padding_idx=0)
        years = np.nan_to_num((catalogue.decades * 10 - FIRST_YEAR) / YEARS_PER_LEVEL)
        self.register_buffer("genres", torch.from_numpy(catalogue.genres), persistent=False)
        self.register_buffer(
            "years", torch.from_numpy(np.clip(years, 0, YEAR_LEVELS - 1).astype(np.int64)), persistent=False
        )
        self.register_buffer("words", torch.from_numpy(catalogue.words), persistent=False)
        for table in (self.ids, self.year, self.word):
            nn.init.normal_(table.weight, std=0.05)
        with torch.no_grad():
            self.word.weight[0].zero_()

    def forward(self, item_idx: Tensor) -> Tensor:
        """(M,) -> (M, D)"""
        ids = self.ids(item_idx)
        if self.training and self.id_dropout:
            kept = torch.rand(len(item_idx), 1, device=item_idx.device) >= self.id_dropout
            ids = ids * kept
        content = self.year(self.years[item_idx]) + self.word(self.words[item_idx])
        if self.genre is not None:
            content = content + self.genre(self.genres[item_idx])
        vectors: Tensor = ids + content
        return vectors


class Block(nn.Module):
    """Pre-norm causal attention with a learned bias by distance, then a two-layer perceptron."""

    def __init__(self, shape: TowerShape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.dropout = shape.dropout
        self.norm_attention = nn.LayerNorm(shape.dim)
        self.qkv = nn.Linear(shape.dim, 3 * shape.dim)
        self.out = nn.Linear(shape.dim, shape.dim)
        self.distance_bias = nn.Parameter(torch.zeros(shape.heads, shape.max_length + 1))
        self.norm_mlp = nn.LayerNorm(shape.dim)
        self.mlp = nn.Sequential(
            nn.Linear(shape.dim, 2 * shape.dim),
            nn.GELU(),
            nn.Dropout(shape.dropout),
            nn.Linear(2 * shape.dim, shape.dim),
        )
        self.drop = nn.Dropout(shape.dropout)

    def forward(self, x: Tensor, mask: Tensor, distance: Tensor) -> Tensor:
        """x (B, L, D); mask (B, 1, L, L) is 0 where attention is allowed, -inf elsewhere; distance (L, L)"""
        b, length, dim = x.shape
        q, k, v = self.qkv(self.norm_attention(x)).view(b, length, 3, self.heads, dim // self.heads).unbind(2)
        bias = self.distance_bias[:, distance] + mask  # (B, H, L, L)
        attended = nn.functional.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=bias,
            dropout_p=self.dropout if self.training else 0.0,
        )
        x = x + self.drop(self.out(attended.transpose(1, 2).reshape(b, length, dim)))
        out: Tensor = x + self.drop(self.mlp(self.norm_mlp(x)))
        return out


class TwoTower(nn.Module):
    def __init__(self, shape: TowerShape, catalogue: Catalogue) -> None:
        super().__init__()
        self.shape = shape
        self.items = ItemTower(shape, catalogue)
        self.rating = nn.Embedding(RATING_LEVELS, shape.dim, padding_idx=0)
        self.gap = nn.Embedding(GAP_LEVELS, shape.dim)
        self.query_gap = nn.Embedding(GAP_LEVELS, shape.dim)
        self.start = nn.Parameter(torch.zeros(shape.dim))
        self.profile = nn.ModuleList(nn.Embedding(size, shape.dim) for size in shape.profile_sizes)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.drop = nn.Dropout(shape.dropout)
        self.norm = nn.LayerNorm(shape.dim)
        self.head = nn.Linear(shape.dim, shape.dim)
        for table in (self.rating, self.gap, *self.profile):
            nn.init.normal_(table.weight, std=0.05)
        nn.init.zeros_(self.query_gap.weight)  # a gap longer than any in training must change nothing

    def item_vectors(self) -> Tensor:
        """(N, D) of every item; apply in eval mode for serving, in train mode for a softmax over all items."""
        vectors: Tensor = self.items(torch.arange(self.shape.n_items, device=self.start.device))
        return vectors

    def encode(self, item_idx: Tensor, ratings: Tensor, gaps: Tensor, profile: Tensor) -> Tensor:
        """Hidden vectors of every prefix.

        item_idx (B, L), left-aligned, -1 where there is no token; ratings, gaps (B, L) levels; profile (B, 3).
        Returns (B, L + 1, D): position 0 knows the profile only, position j knows the tokens 0 .. j - 1.
        """
        b, length = item_idx.shape
        present = item_idx >= 0
        unique, inverse = torch.unique(item_idx.clamp(min=0), return_inverse=True)
        tokens = self.items(unique)[inverse] + self.rating(ratings) + self.gap(gaps)  # (B, L, D)
        start = self.start + sum(table(profile[:, i]) for i, table in enumerate(self.profile))  # (B, D)
        x = self.drop(torch.cat([start[:, None], tokens], dim=1))  # (B, L + 1, D)

        steps = torch.arange(length + 1, device=x.device)
        distance = (steps[:, None] - steps[None, :]).clamp(min=0)
        visible = torch.cat([present.new_ones(b, 1), present], dim=1)  # the start token is always visible
        allowed = (steps[:, None] >= steps[None, :])[None] & visible[:, None, :]  # (B, L + 1, L + 1)
        mask = torch.zeros(allowed.shape, device=x.device).masked_fill(~allowed, float("-inf"))[:, None]
        for block in self.blocks:
            x = block(x, mask, distance)
        normed: Tensor = self.norm(x)
        return normed

    def query(self, hidden: Tensor, gaps: Tensor) -> Tensor:
        """(Q, D) hidden vectors and (Q,) levels of the time since the last event -> (Q, D) user vectors."""
        users: Tensor = self.head(hidden + self.query_gap(gaps))
        return users

    def export(self) -> tuple[TowerWeights, FloatArray]:
        """The weights and every item's vector (N, D): all that inference needs, without torch. Copies: the model may
        be trained further. It must be in eval mode."""
        with torch.inference_mode():
            arrays = {name: values.cpu().numpy().copy() for name, values in self.state_dict().items()}
            return TowerWeights(self.shape, arrays), np.ascontiguousarray(self.item_vectors().cpu().numpy())


def encode_states(model: TwoTower, states: StateBatch) -> FloatArray:
    """(B, D) user vectors of states; the model must be in eval mode. For validation while training: afterwards
    `two_tower_retriever` gives the same vectors."""
    tokens = tokens_of(states, model.shape.max_length)
    device = model.start.device

    def tensor(values: IntArray) -> Tensor:
        return torch.from_numpy(values).to(device)

    with torch.inference_mode():
        hidden = model.encode(
            tensor(tokens.item_idx), tensor(tokens.ratings), tensor(tokens.gaps), tensor(tokens.profile)
        )
        hidden = hidden[torch.arange(len(states), device=device), tensor(tokens.count)]
        users = model.query(hidden, tensor(tokens.query_gap))
    vectors: FloatArray = users.cpu().numpy()
    return vectors
