"""A Hub user, and a run that is short enough for tests of publishing."""

TOKEN = "hf_" + "annsTokenOfTests" * 2
TINY_RUN = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "head_dim": 16,
    "intermediate_size": 32,
    "max_steps": 2,
    "train_examples": 64,
    "eval_examples": 64,
    "eval_strategy": "no",
    "save_strategy": "no",
    "disable_tqdm": "true",
    "use_cpu": "true",
}
TINY_FLAGS = [text for name, value in TINY_RUN.items() for text in (f"--{name}", str(value))]
