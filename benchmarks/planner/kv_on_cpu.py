"""The KV cache that vLLM on the CPU reports, for thirteen shapes with dummy weights, two of them with drafts.

Run it with the Python of the CPU engine's environment: ``python benchmarks/planner/kv_on_cpu.py OUT.json``. Each
shape is small enough for 3 GB of memory but has the layer kinds, heads and windows of its family.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

CONTEXT = 4096
KV_GIB = 1

COMMON: dict[str, Any] = {
    "hidden_size": 256,
    "vocab_size": 1024,
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
}
SHAPES: dict[str, dict[str, Any]] = {
    "dense": {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 512,
    },
    "dense with biases, odd heads": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "num_hidden_layers": 24,
        "hidden_size": 896,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "intermediate_size": 512,
    },
    "experts": {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "intermediate_size": 512,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 128,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "norm_topk_prob": True,
    },
    "sliding window, half and half": {
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        "num_hidden_layers": 12,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "intermediate_size": 512,
        "sliding_window": 512,
        "query_pre_attn_scalar": 128,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "hidden_activation": "gelu_pytorch_tanh",
        "layer_types": ["sliding_attention", "full_attention"] * 6,
    },
    "sliding window, five to one": {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "num_hidden_layers": 12,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "intermediate_size": 512,
        "sliding_window": 512,
        "sliding_window_pattern": 6,
        "query_pre_attn_scalar": 128,
        "hidden_activation": "gelu_pytorch_tanh",
        "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 2,
    },
    "latent attention": {
        "architectures": ["DeepseekV2ForCausalLM"],
        "model_type": "deepseek_v2",
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "intermediate_size": 512,
        "kv_lora_rank": 512,
        "q_lora_rank": None,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "n_routed_experts": 8,
        "first_k_dense_replace": 7,
        "moe_layer_freq": 1,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "moe_intermediate_size": 128,
        "n_group": 1,
        "topk_group": 1,
        "topk_method": "greedy",
    },
    "hybrid linear attention": {
        "architectures": ["Qwen3NextForCausalLM"],
        "model_type": "qwen3_next",
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 256,
        "intermediate_size": 512,
        "linear_num_key_heads": 8,
        "linear_num_value_heads": 16,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_conv_kernel_dim": 4,
        "full_attention_interval": 4,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 128,
        "shared_expert_intermediate_size": 128,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "norm_topk_prob": True,
        "partial_rotary_factor": 0.25,
    },
    "Mamba-2, three to one": {
        "architectures": ["GraniteMoeHybridForCausalLM"],
        "model_type": "granitemoehybrid",
        "num_hidden_layers": 12,
        "layer_types": [*["mamba"] * 3, "attention"] * 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 128,
        "shared_intermediate_size": 128,
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
        "position_embedding_type": "nope",
        "mamba_n_heads": 8,
        "mamba_d_head": 64,
        "mamba_d_state": 64,
        "mamba_n_groups": 1,
        "mamba_d_conv": 4,
        "mamba_expand": 2,
        "mamba_chunk_size": 64,
        "embedding_multiplier": 1.0,
        "logits_scaling": 1.0,
        "residual_multiplier": 1.0,
        "attention_multiplier": 1.0,
    },
    "Mamba-2, MLPs and attention as layers": {
        "architectures": ["NemotronHForCausalLM"],
        "model_type": "nemotron_h",
        "num_hidden_layers": 26,
        "hybrid_override_pattern": "M-M-M*-M-M-M-M*-M-M-M*-M-M",
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "intermediate_size": 128,
        "mamba_num_heads": 8,
        "mamba_head_dim": 64,
        "ssm_state_size": 64,
        "n_groups": 2,
        "conv_kernel": 4,
        "chunk_size": 64,
        "mamba_ssm_cache_dtype": "float32",
    },
    "Mamba-2 beside attention": {
        "architectures": ["FalconH1ForCausalLM"],
        "model_type": "falcon_h1",
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "intermediate_size": 128,
        "mamba_n_heads": 8,
        "mamba_d_head": 64,
        "mamba_d_ssm": 512,
        "mamba_d_state": 64,
        "mamba_n_groups": 1,
        "mamba_d_conv": 4,
        "mamba_expand": 2,
        "mamba_chunk_size": 64,
        "mamba_rms_norm": True,
        "mamba_norm_before_gate": False,
    },
    "chunked attention, three to one": {
        "architectures": ["Llama4ForCausalLM"],
        "model_type": "llama4_text",
        "num_hidden_layers": 12,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "intermediate_size": 128,
        "intermediate_size_mlp": 128,
        "interleave_moe_layer_step": 1,
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "attention_chunk_size": 512,
    },
}

SHAPES["experts, EAGLE3 drafts"] = SHAPES["experts"]
SHAPES["hybrid linear attention, MTP drafts"] = {**SHAPES["hybrid linear attention"], "num_nextn_predict_layers": 1}

DRAFTS: dict[str, dict[str, Any]] = {
    "experts, EAGLE3 drafts": {"method": "eagle3", "num_speculative_tokens": 3},
    "hybrid linear attention, MTP drafts": {"method": "mtp", "num_speculative_tokens": 3},
}
EAGLE3_HEAD: dict[str, Any] = {
    **COMMON,
    "architectures": ["LlamaForCausalLMEagle3"],
    "model_type": "llama",
    "num_hidden_layers": 1,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "intermediate_size": 512,
    "draft_vocab_size": 512,
}


def report(name: str, shape: dict[str, Any]) -> dict[str, Any]:
    """Return the engine's report for one shape."""
    from vllm import LLM  # noqa: PLC0415

    config = {**COMMON, **shape}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(config))
        drafts = dict(DRAFTS.get(name, {}))
        if drafts.get("method") == "eagle3":
            drafts["model"] = str(Path(folder, "head"))
            Path(drafts["model"]).mkdir()
            Path(drafts["model"], "config.json").write_text(json.dumps(EAGLE3_HEAD))
        llm = LLM(
            model=folder,
            skip_tokenizer_init=True,
            load_format="dummy",
            max_model_len=CONTEXT,
            enforce_eager=True,
            kv_cache_memory_bytes=KV_GIB * 2**30,
            max_num_seqs=16,
            speculative_config=drafts or None,
            # As config.json of Qwen3.5 states; with drafts, vLLM on the CPU does not choose it by itself.
            mamba_ssm_cache_dtype="float32",
        )
        engine = llm.llm_engine.vllm_config
        cache = engine.cache_config
        return {
            "name": name,
            "config": config,
            "tokens": cache.kv_cache_size_tokens,
            "blocks": cache.num_gpu_blocks,
            "block_size": cache.block_size,
            "batched_tokens": engine.max_in_flight_tokens
            if hasattr(engine, "max_in_flight_tokens")
            else engine.scheduler_config.max_num_batched_tokens,
            "mamba_cache_mode": str(getattr(cache, "mamba_cache_mode", "")),
            "kv_gib": KV_GIB,
            "context": CONTEXT,
            "drafts": DRAFTS.get(name),
        }


def main() -> None:
    """Run one process per shape, because an engine does not release all its memory."""
    if len(sys.argv) > 2:
        try:
            result = report(sys.argv[2], SHAPES[sys.argv[2]])
        except Exception as error:  # noqa: BLE001
            traceback.print_exc()
            result = {"name": sys.argv[2], "error": repr(error)[:300]}
        Path(sys.argv[1]).write_text(json.dumps(result))
        return
    results = []
    for name in SHAPES:
        with tempfile.NamedTemporaryFile() as file:
            os.spawnv(os.P_WAIT, sys.executable, [sys.executable, __file__, file.name, f"{name}"])
            text = Path(file.name).read_text()
            results.append(json.loads(text) if text else {"name": name, "error": "died"})
        print(results[-1].get("name"), results[-1].get("tokens"), results[-1].get("error"), flush=True)
    import vllm  # noqa: PLC0415

    Path(sys.argv[1]).write_text(json.dumps({"vllm": vllm.__version__, "results": results}, indent=1))


if __name__ == "__main__":
    main()
