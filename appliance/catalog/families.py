"""Families of models: the facts that their config.json does not state, and their spellings of the ordinary fields.

Data. One :class:`~appliance.catalog.family.Family` per ``model_type``. :mod:`appliance.catalog.hf_config` reads
a file by its family and rejects a ``model_type`` that is not here. ``tests/catalog/test_families.py`` compares
every entry with the weights that transformers creates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from appliance.catalog.family import Experts, Family, MambaFields, Names

NO_BIAS: Mapping[str, tuple[object, ...]] = {"attention_bias": (False, None), "mlp_bias": (False, None)}

GPT2_NAMES: Names = {
    "hidden_size": ("n_embd",),
    "num_hidden_layers": ("n_layer",),
    "num_attention_heads": ("n_head",),
    "max_position_embeddings": ("n_positions",),
    "intermediate_size": ("n_inner",),
}
OLD = Family(bias="all", gated=False, mlp_bias="all", norm_bias="all", tied=True)
GPT2 = replace(OLD, names=GPT2_NAMES, positions=0, only={"add_cross_attention": (False,)}, harmless=("n_ctx",))
GPTJ = replace(
    GPT2,
    bias="none",
    norms=1,
    positions=None,
    head_bias="all",
    tied=False,
    only={},
    harmless=("n_ctx",),
)
LLAMA = Family(bias="attention_bias:all", mlp_bias="mlp_bias:all")
QWEN2 = Family(bias="qkv", window="late")
QWEN3 = Family(bias="attention_bias:all", qk_norm="head", window="late")
GEMMA = Family(bias="attention_bias:all", tied=True)
GEMMA2 = replace(GEMMA, norms=4, window="sliding_window_pattern=2")
GEMMA3 = replace(
    GEMMA,
    norms=4,
    qk_norm="head",
    names={"sliding_window_pattern": ("sliding_window_pattern", "_sliding_window_pattern")},
    window="sliding_window_pattern=6",
    gemma3_context=True,
)
GEMMA4 = replace(
    GEMMA,
    norms=4,
    qk_norm="head",
    window="sliding_window_pattern=6",
    experts=Experts(per_token=("top_k_experts",), beside_dense="enable_moe_block"),
    extra="gemma4",
    only={
        "num_kv_shared_layers": (0, None),
        "hidden_size_per_layer_input": (0, None),
        "expert_intermediate_size": (None,),
        "use_double_wide_mlp": (False, None),
    },
    harmless=("vocab_size_per_layer_input",),
)
MOE_NAMES = ("num_experts", "num_local_experts", "n_routed_experts")
QWEN_EXPERTS = Experts(count=MOE_NAMES, dense=("decoder_sparse_step", "mlp_only_layers"))
QWEN_SHARED = replace(QWEN_EXPERTS, shared="shared_expert_intermediate_size", shared_is="width", shared_gate=True)
QWEN3_5 = replace(
    QWEN3,
    linear=True,
    output_gate="full",
    window="whole",
    only={
        "attn_output_gate": (True, None),
        "output_gate_type": ("swish", None),
        "decoder_sparse_step": (1,),
        "mamba_ssm_dtype": ("float32",),
        "mlp_only_layers": ([], None),
    },
)
DEEPSEEK_EXPERTS = Experts(
    count=MOE_NAMES,
    shared="n_shared_experts",
    dense=("first_k_dense_replace", "moe_layer_freq"),
)
BIASED_EXPERTS = replace(DEEPSEEK_EXPERTS, router_bias="all")
LISTED_EXPERTS = replace(BIASED_EXPERTS, dense=("mlp_layer_types", "first_k_dense_replace", "moe_layer_freq"))
DEEPSEEK_V2 = Family(latent=True, experts=DEEPSEEK_EXPERTS, only=NO_BIAS, harmless=("head_dim",))
DEEPSEEK_V3 = replace(DEEPSEEK_V2, experts=BIASED_EXPERTS)
DEEPSEEK_V32 = replace(DEEPSEEK_V2, experts=LISTED_EXPERTS, indexer=True)
GLM4_MOE = Family(bias="attention_bias:qkv", qk_norm="use_qk_norm:head", experts=BIASED_EXPERTS)
LOCAL_EXPERTS = Experts(count=MOE_NAMES, width="intermediate_size")
GRANITE = replace(LLAMA, harmless=("layer_rope_theta",))
GRANITE_MOE = Family(bias="attention_bias:all", experts=LOCAL_EXPERTS, harmless=("layer_rope_theta",))
GRANITE_SHARED = replace(
    GRANITE_MOE, experts=replace(LOCAL_EXPERTS, shared="shared_intermediate_size", shared_is="width")
)
COHERE = Family(bias="attention_bias:all", qk_norm="use_qk_norm:full", norms=1, tied=True)
COHERE_LAYERS: Mapping[str, tuple[object, ...]] = {
    "layer_switch": (4,),
    "order_of_interleaved_layers": ("local_attn_first",),
    "position_embedding_type": ("rope_gptj",),
    "use_embedding_sharing": (True,),
    "use_gated_activation": (True,),
    "use_parallel_block": (True,),
    "use_parallel_embedding": (True, False),
}
NEOX = replace(OLD, bias="attention_bias:all", tied=False, harmless=("use_parallel_residual",))
OLMO2 = Family(bias="attention_bias:all", qk_norm="full")
PHI = replace(OLD, norms=1, tied=False, head_bias="all", qk_norm="qk_layernorm:layer", names={})
HUNYUAN = Family(bias="attention_bias:all", qk_norm="head", only={"use_cla": (False,), "use_qk_norm": (True,)})
ERNIE = Family(bias="use_bias:all", mlp_bias="use_bias:all", tied=True)
MAMBA_STEPS = (
    "mamba_chunk_size",
    "num_logits_to_keep",
    "time_step_floor",
    "time_step_limit",
    "time_step_max",
    "time_step_min",
    "time_step_rank",
)
"""How a Mamba state advances, and how many tokens at once."""

NEMOTRON_H = Family(
    mamba=MambaFields(
        layers="blocks",
        heads="mamba_num_heads",
        head_dim="mamba_head_dim",
        state="ssm_state_size",
        groups="n_groups",
        conv="conv_kernel",
        conv_bias="use_conv_bias",
        in_bias="use_bias",
        out_bias="use_bias",
        expand="",
        state_type="mamba_ssm_cache_dtype",
    ),
    names={"head_dim": ("head_dim", "attention_head_dim")},
    norms=1,
    gated=False,
    experts=Experts(
        count=("n_routed_experts",),
        shared="moe_shared_expert_intermediate_size",
        shared_is="width",
        router_bias="all",
        latent="moe_latent_size",
    ),
    only={
        "attention_bias": (False,),
        "mamba_proj_bias": (False,),
        "mlp_bias": (False,),
        "n_shared_experts": (1,),
    },
    harmless=(
        *MAMBA_STEPS,
        "chunk_size",
        "expand",
        "mamba_hidden_act",
        "mlp_hidden_act",
        "moe_shared_expert_overlap",
        "rescale_prenorm_residual",
        "residual_in_fp32",
        "use_mamba_kernels",
    ),
)

FAMILIES: Mapping[str, Family] = {
    "afmoe": Family(
        bias="attention_bias:all",
        qk_norm="head",
        output_gate="full",
        norms=4,
        window="global_attn_every_n_layers=4",
        experts=Experts(shared="num_shared_experts", router_bias="all", dense=("num_dense_layers",)),
        harmless=("mup_enabled", "route_scale", "score_func", "load_balance_coeff", "route_norm"),
    ),
    "apertus": Family(
        bias="attention_bias:all", qk_norm="head", gated=False, mlp_bias="mlp_bias:all", extra="xielu"
    ),
    "arcee": replace(LLAMA, gated=False),
    "aria_text": replace(
        LLAMA,
        mlp_bias="none",
        experts=Experts(
            count=("moe_num_experts",),
            per_token=("moe_topk",),
            width="intermediate_size",
            shared="moe_num_shared_experts",
        ),
        only={"mlp_bias": (False,)},
    ),
    "bamba": replace(LLAMA, mamba=MambaFields(layers="indices"), harmless=(*MAMBA_STEPS, "z_loss_coefficient")),
    "axk1": replace(DEEPSEEK_V3, extra="moe norm"),
    "biogpt": replace(OLD, positions=2),
    "bitnet": Family(bias="attention_bias:all", extra="sub norms"),
    "bloom": replace(
        OLD,
        names={
            "hidden_size": ("hidden_size", "n_embed", "n_embd"),
            "num_hidden_layers": ("n_layer", "num_hidden_layers"),
            "num_attention_heads": ("n_head", "num_attention_heads"),
            "max_position_embeddings": ("seq_length",),
        },
        embedding_norm=True,
        harmless=(
            "apply_residual_connection_post_layernorm",
            "attention_softmax_in_fp32",
            "bias_dropout_fusion",
            "masked_softmax_fusion",
            "offset_alibi",
            "skip_bias_add",
            "skip_bias_add_qkv",
            "slow_but_exact",
            "unk_token_id",
        ),
    ),
    "codegen": GPTJ,
    "cohere": COHERE,
    "cohere2": replace(COHERE, qk_norm="none", window="sliding_window_pattern=4", only=COHERE_LAYERS),
    "cwm": replace(LLAMA, window="every fourth", bias="none"),
    "deepseek_v2": DEEPSEEK_V2,
    "deepseek_v3": DEEPSEEK_V3,
    "deepseek_v32": DEEPSEEK_V32,
    "diffllama": Family(bias="attention_bias:all", extra="lambdas", harmless=("lambda_std_dev",)),
    "dots1": Family(bias="attention_bias:all", qk_norm="head", experts=BIASED_EXPERTS, window="late"),
    "ernie4_5": ERNIE,
    "ernie4_5_moe": Family(
        tied=True,
        experts=Experts(
            count=("moe_num_experts", "num_experts"),
            per_token=("moe_k", "num_experts_per_tok"),
            shared="moe_num_shared_experts",
            router_bias="all",
            dense=("moe_layer_start_index", "moe_layer_end_index", "moe_layer_interval"),
        ),
        only={"moe_use_aux_free": (True,), "use_bias": (False,)},
    ),
    "exaone4": Family(qk_norm="head", window="sliding_window_pattern=4"),
    "exaone_moe": Family(
        qk_norm="head",
        window="sliding_window_pattern=4",
        experts=Experts(
            shared="num_shared_experts", router_bias="all", dense=("mlp_layer_types", "first_k_dense_replace")
        ),
    ),
    "falcon": replace(
        OLD,
        names={
            "num_hidden_layers": ("num_hidden_layers", "n_layer"),
            "num_attention_heads": ("num_attention_heads", "n_head"),
            "num_key_value_heads": ("num_kv_heads", "n_head_kv"),
            "intermediate_size": ("ffn_hidden_size",),
        },
        bias="bias:all",
        mlp_bias="bias:all",
        extra="falcon",
        harmless=("alibi", "apply_residual_connection_post_layernorm"),
    ),
    "falcon_h1": replace(
        LLAMA,
        mamba=MambaFields(
            layers="parallel", out_bias="projectors_bias", width="mamba_d_ssm", norm="mamba_rms_norm:all"
        ),
        only={"mamba_use_mlp": (True,)},
        harmless=(
            *MAMBA_STEPS,
            "attention_in_multiplier",
            "attention_out_multiplier",
            "key_multiplier",
            "lm_head_multiplier",
            "mamba_norm_before_gate",
            "mlp_expansion_factor",
            "mlp_multipliers",
            "ssm_in_multiplier",
            "ssm_multipliers",
            "ssm_out_multiplier",
        ),
    ),
    "flex_olmo": replace(OLMO2, experts=replace(LOCAL_EXPERTS, count=("num_experts",))),
    "gemma": GEMMA,
    "gemma2": GEMMA2,
    "gemma3_text": GEMMA3,
    "gemma4_text": GEMMA4,
    "gemma4_unified_text": GEMMA4,
    "glm": replace(LLAMA, bias="attention_bias:qkv", mlp_bias="none"),
    "glm4": replace(LLAMA, bias="attention_bias:qkv", mlp_bias="none", norms=4),
    "glm4v_text": replace(LLAMA, bias="qkv", mlp_bias="none", norms=4, only={"attention_bias": (True, None)}),
    "glm4_moe": GLM4_MOE,
    "glm4_moe_lite": replace(DEEPSEEK_V2, experts=LISTED_EXPERTS),
    "glm_moe_dsa": DEEPSEEK_V32,
    "gpt2": GPT2,
    "gpt_bigcode": replace(GPT2, extra="multi query"),
    "gpt_neo": replace(
        OLD,
        names={
            "num_hidden_layers": ("num_layers",),
            "num_attention_heads": ("num_heads",),
        },
        bias="out",
        positions=0,
        harmless=("attention_types", "attention_layers", "window_size"),
    ),
    "gpt_neox": NEOX,
    "gpt_neox_japanese": replace(OLD, bias="none", mlp_bias="none", extra="neox japanese"),
    "gpt_oss": Family(
        bias="all",
        sinks="all",
        window="sliding_window_pattern=2",
        experts=Experts(
            count=MOE_NAMES,
            per_token=("num_experts_per_tok", "experts_per_token"),
            width="intermediate_size",
            router_bias="all",
            expert_bias=True,
        ),
        only={"attention_bias": (True, None)},
        harmless=("swiglu_alpha", "swiglu_limit", "initial_context_length"),
    ),
    "gptj": GPTJ,
    "granite": GRANITE,
    "granite_swa": replace(GRANITE, sinks="all", window="every fourth", tied=True),
    "granitemoe": GRANITE_MOE,
    "granitemoe_swa": replace(GRANITE_SHARED, sinks="all", window="every fourth"),
    "granitemoehybrid": replace(
        GRANITE_SHARED,
        mamba=MambaFields(layers="listed"),
        experts=replace(
            LOCAL_EXPERTS,
            shared="shared_intermediate_size",
            shared_is="width",
            dense_width="shared_intermediate_size",
        ),
        only={"normalization_function": ("rmsnorm",), "position_embedding_type": ("nope", "rope", None)},
        harmless=(*GRANITE_SHARED.harmless, *MAMBA_STEPS, "init_method"),
    ),
    "granitemoeshared": GRANITE_SHARED,
    "helium": replace(LLAMA, bias="attention_bias:qkv", extra="square"),
    "hunyuan_v1_dense": HUNYUAN,
    "hunyuan_v1_moe": replace(
        HUNYUAN,
        experts=Experts(
            count=("num_experts", "num_local_experts"),
            per_token=("moe_topk", "num_experts_per_tok"),
            width="intermediate_size",
            shared="num_shared_expert",
            shared_usual=1,
        ),
    ),
    "hy_v3": Family(
        bias="attention_bias:all",
        qk_norm="head",
        experts=Experts(
            shared="num_shared_experts", router_bias="all", dense=("mlp_layer_types", "first_k_dense_replace")
        ),
        only={"mlp_bias": (False, None)},
        harmless=("enable_moe_fp32_combine", "router_scaling_factor"),
    ),
    "hyperclovax": replace(LLAMA, extra="post norms"),
    "jais2": replace(OLD, bias="attention_bias:all", mlp_bias="mlp_bias:all", tied=False),
    "kimi_linear": replace(
        DEEPSEEK_V2,
        delta=True,
        names={"num_experts_per_tok": ("num_experts_per_tok", "num_experts_per_token")},
        experts=replace(LISTED_EXPERTS, shared="num_shared_experts", shared_usual=1),
        only={**NO_BIAS, "mla_use_nope": (True, None), "moe_router_activation_func": ("sigmoid", None)},
        harmless=("head_dim", "moe_renormalize", "num_expert_group", "use_grouped_topk"),
    ),
    "laguna": Family(
        bias="attention_bias:all",
        qk_norm="head",
        output_gate="head",
        experts=Experts(
            shared="shared_expert_intermediate_size",
            shared_is="width",
            router_bias="all",
            dense=("mlp_layer_types",),
        ),
        extra="equal heads",
        only={"gating": (True,)},
        harmless=(
            "moe_apply_router_weight_on_input",
            "moe_routed_scaling_factor",
            "moe_router_logit_softcapping",
            "swa_rope_parameters",
        ),
    ),
    "llama": LLAMA,
    "llama4_text": Family(
        bias="attention_bias:all",
        chunked=True,
        experts=Experts(
            count=("num_local_experts",),
            width="intermediate_size",
            shared_usual=1,
            dense=("moe_layers", "interleave_moe_layer_step"),
            dense_width="intermediate_size_mlp",
        ),
        # Llama 4 normalises queries and keys without weights.
        harmless=("attn_scale", "attn_temperature_tuning", "floor_scale", "use_qk_norm"),
    ),
    "mellum": replace(
        QWEN3, experts=Experts(count=MOE_NAMES, dense=("mlp_layer_types",)), only={"norm_topk_prob": (True, False)}
    ),
    "minimax_m2": Family(
        qk_norm="full",
        experts=replace(LOCAL_EXPERTS, router_bias="all"),
        everywhere={"attn_type_list": 1},
        only={
            "use_qk_norm": (True,),
            "qk_norm_type": ("per_layer",),
            "use_routing_bias": (True,),
            "shared_intermediate_size": (0, None),
        },
    ),
    "mimo_v2_flash": Family(
        bias="attention_bias:qkv",
        sinks="sliding",
        layer_pattern=True,
        names={"sliding_window": ("sliding_window", "sliding_window_size", "attention_chunk_size")},
        sliding_fields={
            "num_attention_heads": ("swa_num_attention_heads",),
            "num_key_value_heads": ("swa_num_key_value_heads",),
            "head_dim": ("swa_head_dim",),
            "v_head_dim": ("swa_v_head_dim",),
        },
        sliding_kv_heads=2,
        experts=Experts(count=MOE_NAMES, router_bias="all", dense=("mlp_layer_types", "moe_layer_freq")),
        only={
            "add_full_attention_sink_bias": (False, None),
            "add_swa_attention_sink_bias": (True, None),
            "n_shared_experts": (None, 0),
        },
        harmless=("attention_value_scale",),
    ),
    "minimax_m3_vl_text": Family(
        qk_norm="head",
        block_index=True,
        names={"intermediate_size": ("intermediate_size", "moe_intermediate_size")},
        experts=Experts(
            count=MOE_NAMES,
            width="intermediate_size",
            shared="shared_intermediate_size",
            shared_is="width",
            router_bias="all",
            dense=("mlp_layer_types", "moe_layer_freq"),
            dense_width="dense_intermediate_size",
        ),
        only={
            "attention_output_gate": (False, None),
            "n_shared_experts": (1, None),
            "qk_norm_type": ("per_head", None),
            "use_qk_norm": (True, None),
            "use_routing_bias": (True, None),
        },
        harmless=("first_k_dense_replace", "index_local_blocks", "swiglu_alpha", "swiglu_limit", "use_gemma_norm"),
    ),
    "mimo": replace(QWEN2, only={"attention_bias": (True,)}),
    "ministral3": Family(),
    "mistral": Family(),
    "mixtral": Family(experts=LOCAL_EXPERTS),
    "mpt": Family(
        names={
            "hidden_size": ("d_model",),
            "num_hidden_layers": ("n_layers",),
            "num_attention_heads": ("n_heads",),
            "max_position_embeddings": ("max_seq_len",),
        },
        gated=False,
        tied=True,
        extra="mpt",
        only={"no_bias": (True,), "embedding_fraction": (1.0,), "norm_type": ("low_precision_layernorm",)},
        harmless=("init_device", "learned_pos_emb", "verbose", "logit_scale"),
    ),
    "nanochat": Family(bias="attention_bias:all", gated=False, norms=0, final_norm=False),
    "nemotron-nas": Family(
        uneven=True,
        only={"attention_bias": (False,), "intermediate_size": (None,), "mlp_bias": (False,)},
    ),
    "nemotron_h": NEMOTRON_H,
    "nemotron": Family(bias="attention_bias:all", gated=False, mlp_bias="mlp_bias:all", norm_bias="all"),
    "olmo": Family(bias="attention_bias:all", norms=0, final_norm=False),
    "olmo2": OLMO2,
    "olmo3": replace(OLMO2, window="sliding_window_pattern=4"),
    "olmoe": replace(OLMO2, experts=replace(LOCAL_EXPERTS, count=("num_experts",))),
    "openai-gpt": replace(GPT2, final_norm=False, only={}),
    "opt": replace(
        OLD,
        names={"intermediate_size": ("ffn_dim",)},
        positions=2,
        only={
            "do_layer_norm_before": (True,),
            "_remove_final_layer_norm": (False,),
            "enable_bias": (True,),
            "layer_norm_elementwise_affine": (True,),
        },
        extra="opt",
    ),
    "persimmon": replace(OLD, tied=False, qk_norm="qk_layernorm:layer"),
    "phi": PHI,
    "phi3": Family(harmless=("original_max_position_embeddings",), only={"attention_bias": (False,)}),
    "phimoe": Family(
        bias="attention_bias:all",
        norm_bias="all",
        head_bias="lm_head_bias:all",
        experts=LOCAL_EXPERTS,
        harmless=("input_jitter_noise",),
    ),
    "qwen2": QWEN2,
    "qwen2_moe": replace(QWEN2, bias="qkv_bias:qkv", experts=QWEN_SHARED),
    "qwen3": QWEN3,
    "qwen3_5_moe_text": replace(QWEN3_5, experts=QWEN_SHARED),
    "qwen3_5_text": QWEN3_5,
    "qwen3_moe": replace(
        QWEN3,
        window="whole",
        experts=QWEN_EXPERTS,
        only={
            "qkv_bias": (False,),
            "shared_expert_intermediate_size": (0, None),
            "use_qk_norm": (True,),
        },
    ),
    "qwen3_next": replace(QWEN3_5, experts=QWEN_SHARED),
    "seed_oss": replace(LLAMA, bias="attention_bias:qkv", only={"attention_out_bias": (False,)}),
    "smollm3": replace(
        LLAMA,
        tied=True,
        only={"use_sliding_window": (False, None)},
        harmless=("no_rope_layer_interval", "no_rope_layers"),
    ),
    "solar_open": Family(bias="attention_bias:qkv", experts=BIASED_EXPERTS, only={"use_qk_norm": (False,)}),
    "step3p5": Family(
        bias="attention_bias:all",
        qk_norm="head",
        output_gate="head",
        names={"num_key_value_heads": ("num_key_value_heads", "num_attention_groups")},
        sliding_fields={"num_attention_heads": ("num_sliding_attention_heads",)},
        experts=Experts(
            count=("n_routed_experts", "num_local_experts", "moe_num_experts"),
            per_token=("num_experts_per_tok", "moe_top_k"),
            shared="share_expert_dim",
            shared_is="width",
            router_bias="all",
            dense=("mlp_layer_types",),
        ),
        extra="heads of a kind",
        only={"mlp_bias": (False, None)},
        harmless=(
            "moe_router_scaling_factor",
            "mtp_layer_types",
            "mtp_mlp_layer_types",
            "swiglu_limits",
            "swiglu_limits_shared",
        ),
    ),
    "stablelm": Family(
        bias="use_qkv_bias:qkv",
        norm_bias="all",
        only={"qk_layernorm": (False,), "use_parallel_residual": (False,)},
    ),
    "starcoder2": replace(
        OLD,
        bias="use_bias:all",
        mlp_bias="use_bias:all",
        only={"mlp_type": ("default",), "norm_type": ("layer_norm",)},
    ),
    "vaultgemma": replace(GEMMA, window="sliding_window_pattern=2"),
    "xglm": replace(
        OLD,
        names={
            "hidden_size": ("d_model",),
            "num_hidden_layers": ("num_layers",),
            "num_attention_heads": ("attention_heads",),
            "intermediate_size": ("ffn_dim",),
        },
    ),
}
"""Every family that is counted."""
