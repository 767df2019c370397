#!/usr/bin/env python3
"""One run of vLLM on the CPU for peers.py: prompts of drawn token ids, all at once, each answered
greedily to its length, in bf16, compiled; prints one JSON object.

    peer_vllm.py FOLDER --seqs N --input I --output O --threads T
    peer_vllm.py FOLDER --convert MODEL.gguf      makes the folder that the others take

Short runs come first, so that nothing is compiled inside of the time; one with answers of one token
gives the rate of prompts.
"""
import argparse
import json
import os
import random
import resource
import time


def convert(folder, gguf):
    from transformers import AutoModelForCausalLM, AutoTokenizer
    where, name = os.path.dirname(gguf) or ".", os.path.basename(gguf)
    loaded = AutoModelForCausalLM.from_pretrained(where, gguf_file=name, dtype="bfloat16")
    # It is plain numbers by now, but still called quantised.
    del loaded.config.quantization_config
    model = AutoModelForCausalLM.from_config(loaded.config, dtype="bfloat16")
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(where, gguf_file=name).save_pretrained(folder)


def measure(args):
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "0-%d" % (args.threads - 1))
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    import vllm
    engine = vllm.LLM(model=args.folder, dtype="bfloat16", max_num_seqs=args.seqs,
                      max_model_len=args.input + args.output, skip_tokenizer_init=True,
                      enable_prefix_caching=False, disable_log_stats=True, seed=0)
    draw = random.Random(0)

    def run(tokens):
        prompts = [{"prompt_token_ids": [draw.randrange(1000, 40000) for _ in range(args.input)]}
                   for _ in range(args.seqs)]
        how = vllm.SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True,
                                  detokenize=False)
        start = time.monotonic()
        found = engine.generate(prompts, how, use_tqdm=False)
        seconds = time.monotonic() - start
        if any(len(one.outputs[0].token_ids) != tokens for one in found):
            raise SystemExit("an answer has another length")
        return seconds

    run(2)
    run(1)
    first, last = run(1), run(args.output)
    decoded = args.seqs * (args.output - 1)
    print(json.dumps({
        "prefill_tok_s": args.seqs * args.input / first,
        "decode_tok_s": decoded / (last - first) if decoded else None,
        "output_tok_s": args.seqs * args.output / last,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "version": "vLLM " + vllm.__version__}))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--convert")
    for name in ("seqs", "input", "output", "threads"):
        parser.add_argument(f"--{name}", type=int)
    args = parser.parse_args()
    if args.convert:
        convert(args.folder, args.convert)
    else:
        measure(args)


if __name__ == "__main__":
    main()
