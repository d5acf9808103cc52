"""200 tasks and states, and the prompt texts that openpi and LeRobot build of them; run inside
their installations.

    python make_reference.py openpi ; python make_reference.py lerobot

Each adds its texts to prompts.json. `ids.mjs` then adds a digest of each text's token ids.
README.md has versions.
"""

import json
import pathlib
import sys
import types

import numpy as np

FILE = pathlib.Path(__file__).parent / 'prompts.json'
COUNT = 200
WORDS = (
    'pick', 'up', 'the', 'brick', 'place', 'it', 'in', 'box', 'lego', 'pink', 'transparent',
    'drawer', 'open', 'left_arm', 'gripper.pos', '12', '0.5', 'cm', 'fold-the', 'shirt', 'T-shirt',
    'PUT', 'Käse', 'żółw', 'レゴを取って', '把积木放进盒子', '🤖', '🧱', '👩\u200d🔬', 'e\u0301',
    'naïve', '\u200b', '▁', '...', '', '--', '(slowly)', '"now"', "don't", '100%', 'a/b', 'C:\\x',
)  # fmt: skip
ODD = (
    '  leading spaces', 'trailing spaces   ', '\n\nnewlines\nin\nit\n', 'under_score__twice_',
    'tab\tand\r\nreturn', '', ' ', '___', '<bos>', '<eos> stop', 'say <bos>twice<bos>',
    '<pad><unk>', '<loc0123> <seg001>', '<image>', 'Task: State: ;', 'a  b   c    d',
    '\u00a0nbsp\u00a0', '１２３', 'x' * 60, 'ﬁne ligature', '\ufeffbom', 'ａｂｃ', '🇩🇪🇨🇳',
    '\u2581lower\u2581block',
)  # fmt: skip


def prompts() -> list[dict]:
    """Tasks of every kind; states of 1 to 14 joints, in and out of range, and on the very edges of
    bins.
    """
    rng, out = np.random.default_rng(11), []
    for n in range(COUNT):
        words = [WORDS[i] for i in rng.integers(0, len(WORDS), rng.integers(1, 12))]
        task = (
            ODD[n]
            if n < len(ODD)
            else str(rng.choice([' ', '_', '\n', '  '], p=[0.7, 0.1, 0.1, 0.1])).join(words)
        )
        width = int(rng.integers(1, 15))
        state = rng.uniform(-1.3, 1.3, width)
        edges = rng.integers(-130, 131, width) / 128
        state = np.where(rng.random(width) < 0.3, edges, state).astype(np.float32)
        state = np.where(rng.random(width) < 0.05, np.nextafter(state, np.float32(-9)), state)
        out.append({'task': task, 'state': [float(x) for x in state]})
    return out


def openpi_texts(cases: list[dict]) -> list[str]:
    """The text that openpi's `PaligemmaTokenizer.tokenize` hands to sentencepiece."""
    import openpi.models.tokenizer

    seen: list[str] = []

    def encode(text: str, add_bos: bool) -> list[int]:
        seen.append(text)
        return [2]

    tokenizer = object.__new__(openpi.models.tokenizer.PaligemmaTokenizer)
    tokenizer._max_len = 200
    tokenizer._tokenizer = types.SimpleNamespace(encode=encode)
    for case in cases:
        tokenizer.tokenize(case['task'], np.array(case['state'], np.float32))
    return seen


def lerobot_texts(cases: list[dict]) -> list[str]:
    """The text that LeRobot 0.4's `Pi05PrepareStateTokenizerProcessorStep` hands to the
    tokenizer.
    """
    import torch
    from lerobot.policies.pi05.processor_pi05 import Pi05PrepareStateTokenizerProcessorStep
    from lerobot.processor.core import TransitionKey

    step, seen = Pi05PrepareStateTokenizerProcessorStep(max_state_dim=32), []
    for case in cases:
        observation = {'observation.state': torch.tensor([case['state']], dtype=torch.float32)}
        data = {
            TransitionKey.OBSERVATION: observation,
            TransitionKey.COMPLEMENTARY_DATA: {'task': [case['task']]},
        }
        seen += step(data)[TransitionKey.COMPLEMENTARY_DATA]['task']
    return seen


def main(library: str) -> None:
    """Adds one library's texts."""
    cases = json.loads(FILE.read_text()) if FILE.is_file() else prompts()
    texts = openpi_texts(cases) if library == 'openpi' else lerobot_texts(cases)
    for case, text in zip(cases, texts, strict=True):
        case[library] = text
    FILE.write_text(json.dumps(cases, indent=0) + '\n')


if __name__ == '__main__':
    main(sys.argv[1])
