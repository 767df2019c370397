"""The tiny models with golden outputs, through real jobs: what SmolLM2 does not have.

    llama     tied output, plain RoPE
    qwen2     biases on queries, keys and values (a llama in all else)
    mistral   a sliding window of 16, shorter than the input; its own output head

Each is written as a GGUF file of architecture llama, without a tokenizer, in f32.  Shown: the 20
greedy tokens of the reference implementation, in every layout, with free and with fixed products;
text prompts and messages are errors of their records, and answers are spelt as token ids.
"""
# cores: 1
import array
import json
import os
import struct
import sys

import job

MODELS = ["llama", "qwen2", "mistral"]
LAYOUTS = [(1, 1), (2, 1), (3, 1), (4, 1), (1, 2), (2, 2)]
ALIGN = 32
ROLES = {"input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
         "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
         "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
         "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def read_safetensors(path):
    """Name -> (shape, f32 values)."""
    with open(path, "rb") as file:
        data = file.read()
    size = struct.unpack("<Q", data[:8])[0]
    found = {}
    for name, entry in json.loads(data[8:8 + size]).items():
        if name == "__metadata__":
            continue
        first, end = entry["data_offsets"]
        found[name] = (entry["shape"], array.array("f", data[8 + size + first:8 + size + end]))
    return found


def gguf_name(name):
    stem, kind = name.rsplit(".", 1)
    if stem in WHOLE:
        return f"{WHOLE[stem]}.{kind}"
    _, _, layer, role = stem.split(".", 3)
    return f"blk.{layer}.{ROLES[role]}.{kind}"


def interleaved(values, row, head_dim):
    """Rows of q and k as GGUF files of llamas hold them: element pairs side by side."""
    half, out = head_dim // 2, array.array("f")
    for head in range(len(values) // row // head_dim):
        for i in range(half):
            for j in range(2):
                at = (head * head_dim + j * half + i) * row
                out += values[at:at + row]
    return out


def text(value):
    return struct.pack("<Q", len(value)) + value.encode()


def key(name, value):
    if isinstance(value, str):
        return text(name) + struct.pack("<I", 8) + text(value)
    if isinstance(value, float):
        return text(name) + struct.pack("<If", 6, value)
    return text(name) + struct.pack("<II", 4, value)


def write_gguf(folder, path, more=()):
    """more: keys that are packed already."""
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    heads, width = config["num_attention_heads"], config["hidden_size"]
    head_dim = config.get("head_dim", width // heads)
    theta = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
    keys = [("general.architecture", "llama"), ("llama.block_count", config["num_hidden_layers"]),
            ("llama.embedding_length", width),
            ("llama.context_length", config["max_position_embeddings"]),
            ("llama.feed_forward_length", config["intermediate_size"]),
            ("llama.attention.head_count", heads),
            ("llama.attention.head_count_kv", config["num_key_value_heads"]),
            ("llama.attention.key_length", head_dim), ("llama.attention.value_length", head_dim),
            ("llama.attention.layer_norm_rms_epsilon", float(config["rms_norm_eps"])),
            ("llama.rope.freq_base", float(theta)), ("llama.vocab_size", config["vocab_size"])]
    if config.get("sliding_window"):
        keys.append(("llama.attention.sliding_window", config["sliding_window"]))
    tensors, data = b"", b""
    found = read_safetensors(os.path.join(folder, "model.safetensors"))
    for name, (shape, values) in found.items():
        if ".q_proj." in name or ".k_proj." in name:
            values = interleaved(values, shape[1] if len(shape) == 2 else 1, head_dim)
        tensors += text(gguf_name(name)) + struct.pack("<I", len(shape))
        tensors += struct.pack(f"<{len(shape)}Q", *reversed(shape)) + struct.pack("<IQ", 0,
                                                                                  len(data))
        data += values.tobytes()
        data += bytes(-len(data) % ALIGN)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(found), len(keys) + len(more))
    head += b"".join([key(*entry) for entry in keys] + list(more)) + tensors
    with open(path, "wb") as file:
        file.write(head + bytes(-len(head) % ALIGN) + data)


def golden_of(name):
    with open(os.path.join(job.ROOT, "tests/data/tiny", name, "golden.json"),
              encoding="utf-8") as file:
        return json.load(file)


def check_model(tally, name, layouts):
    golden, folder = golden_of(name), job.Folder()
    path = folder.file(f"{name}.gguf")
    write_gguf(os.path.join(job.ROOT, "tests/data/tiny", name), path)
    body = {"prompt": golden["input_ids"], "max_tokens": len(golden["greedy"]), "temperature": 0,
            "ignore_eos": True, "return_token_ids": True}
    given = job.records([("ids", body), ("text", dict(body, prompt="hello"))])
    for tensor, pipeline in layouts:
        for fixed in (False, True):
            what = f"{name}, tensor {tensor} x pipeline {pipeline}{', fixed' if fixed else ''}"
            config = job.config("f32", tensor, pipeline, 1, fixed, 8).replace(job.MODEL, path)
            config = config.replace("max_model_len: 2048", "max_model_len: 512")
            done = job.run(tensor * pipeline, config, given)
            if not tally.check(f"{what}: exit code", done.code, 3):
                print(done.stderr)
                continue
            choice = done.answers["ids"]["response"]["body"]["choices"][0]
            tally.check(f"{what}: tokens", choice["token_ids"], golden["greedy"])
            tally.check(f"{what}: spelling", choice["text"].split(),
                        [f"token_id:{token}" for token in golden["greedy"]])
            tally.check(f"{what}: text without a tokenizer", done.answers["text"]["response"], None)
    folder.remove()


def main():
    tally = job.Tally("tiny")
    layouts = LAYOUTS if job.has_ranks() else LAYOUTS[:1]
    if job.LEVEL == "quick":
        layouts = [layout for layout in layouts if layout in ((1, 1), (2, 2))]
    for name in MODELS:
        check_model(tally, name, layouts)
    tally.end()


if __name__ == "__main__":
    sys.exit(main())
