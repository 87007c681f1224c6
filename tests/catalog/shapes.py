"""Random shapes of models for properties."""

from __future__ import annotations

from hypothesis import strategies as st

from appliance.catalog.shape import Attention, LinearAttention, Mla, Moe, Shape

SHAPES = st.builds(
    Shape,
    name=st.just("any"),
    hidden=st.sampled_from([256, 1024, 4096]),
    layers=st.integers(4, 60),
    vocab=st.integers(1000, 200_000),
    max_context=st.just(32768),
    tied=st.booleans(),
    full=st.one_of(
        st.builds(
            Attention,
            heads=st.sampled_from([8, 16, 32]),
            kv_heads=st.sampled_from([1, 2, 4, 8]),
            head_dim=st.sampled_from([64, 128]),
        ),
        st.builds(
            Mla,
            heads=st.sampled_from([8, 16]),
            q_rank=st.sampled_from([0, 512]),
            kv_rank=st.just(512),
            nope_dim=st.just(128),
            rope_dim=st.just(64),
            v_dim=st.just(128),
        ),
    ),
    linear=st.builds(
        LinearAttention,
        key_heads=st.just(8),
        value_heads=st.just(16),
        key_dim=st.just(128),
        value_dim=st.just(128),
        conv=st.just(4),
    ),
    linear_layers=st.integers(0, 3),
    dense_width=st.integers(0, 8192),
    dense_layers=st.integers(0, 4),
    moe=st.one_of(
        st.none(),
        st.builds(Moe, experts=st.integers(8, 128), per_token=st.integers(1, 8), width=st.just(256)),
    ),
)
