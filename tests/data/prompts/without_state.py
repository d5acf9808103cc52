"""Prompts without the state (openpi: `discrete_state_input=False`) by openpi's code; run where it
is installed.

    python without_state.py TOKENIZER_JSON > without_state.json

For each task of prompts.json: the texts that `PaligemmaTokenizer.tokenize` hands to sentencepiece
without a state, and the ids that it makes of what the given tokenizer, in sentencepiece's place,
gives for them. README.md has versions.
"""

import json
import pathlib
import sys
import types

PROMPTS = pathlib.Path(__file__).parent / 'prompts.json'


def cases(tokenizer_json: str) -> list[dict]:
    """Task, texts and ids."""
    import openpi.models.tokenizer
    import tokenizers

    inner = tokenizers.Tokenizer.from_file(tokenizer_json)
    inner.encode_special_tokens = True
    seen: list[str] = []

    def encode(text: str, add_bos: bool = False) -> list[int]:
        seen.append(text)
        return [2] * add_bos + inner.encode(text, add_special_tokens=False).ids

    theirs = object.__new__(openpi.models.tokenizer.PaligemmaTokenizer)
    theirs._max_len, theirs._tokenizer = 200, types.SimpleNamespace(encode=encode)
    out = []
    for case in json.loads(PROMPTS.read_text()):
        seen.clear()
        ids, mask = theirs.tokenize(case['task'], None)
        out.append({'task': case['task'], 'texts': list(seen), 'ids': [int(i) for i in ids[mask]]})
    return out


if __name__ == '__main__':
    print('[\n' + ',\n'.join(map(json.dumps, cases(sys.argv[1]))) + '\n]')
