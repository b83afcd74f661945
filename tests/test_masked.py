"""Words of a masked language model: the right row, whole words, special tokens left out, and a table that says the same."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from robustclip.attacks.text.masked import MaskedWords, table_of
from robustclip.attacks.text.search import TextAttack
from robustclip.attacks.text.sources import Table
from robustclip.attacks.text.words import prompts_of
from robustclip.base.errors import UserError

NAMES, TEMPLATES = ("red fox", "papillon", "cloud"), ("a photo of a {}.", "one {}")


VOCABULARY = "[PAD] [UNK] [CLS] [SEP] [MASK] a photo of red fox cloud tent bear one papi ##llon ##ter image picture"


class Stub:
    """A language model that says of every row which one it is, or what it was told to say."""

    special = frozenset({"[CLS]", "[UNK]"})

    def __init__(self, said=None):
        self.said = said or {}

    def pieces(self, word):
        return ["papi", "##llon"] if word == "papillon" else [word]

    def likely(self, pieces, k):
        rows = ["[CLS]", *pieces]
        return [(self.said.get(piece) or [f"pred{place}"])[:k] for place, piece in enumerate(rows)]


def source(said=None, **settings):
    return MaskedWords("stub", "0", Stub(said), **settings)


def test_mmcoa_item_6_every_word_has_its_own_row_and_the_published_code_the_one_before():
    (prompt,) = prompts_of(["red fox"], ["a photo of a {}."])  # rows: [CLS] a photo of a red fox
    places = {prompt.words[i]: i for i in prompt.places("any word")}
    assert {word: source().candidates(prompt, place) for word, place in places.items()} == {
        "photo": ["pred2"],
        "red": ["pred5"],
        "fox": ["pred6"],
    }
    assert source(cls_offset=0).candidates(prompt, places["fox"]) == ["pred5"]


def test_a_word_of_several_pieces_takes_the_rows_of_all_of_them_and_moves_the_later_ones():
    (prompt,) = prompts_of(["papillon dog"], ["a {}"])  # rows: [CLS] a papi ##llon dog
    said = {"papi": ["but", "moth", "[UNK]", "x", "never"], "##llon": ["##ter", "##fly"], "dog": ["cat"]}
    assert source(said).candidates(prompt, 1) == ["butter", "butfly", "mothter", "mothfly", "xter", "xfly"]
    assert source(said).candidates(prompt, 2) == ["cat"]


def test_only_the_first_combinations_are_kept():
    (prompt,) = prompts_of(["papillon"], ["{}"])
    said = {"papi": list("abcdefgh"), "##llon": [f"##{letter}" for letter in "ijklmnop"]}
    assert source(said).candidates(prompt, 0) == [a + b for a in "abcd" for b in "ijkl"]


def test_pieces_special_tokens_stop_words_and_the_word_itself_are_no_candidates():
    (prompt,) = prompts_of(["red"], ["a {}"])
    said = {"red": ["##ish", "[UNK]", "the", "Red", "blue", "green"]}
    assert source(said).candidates(prompt, 1) == ["blue", "green"]
    assert source(said, k=5).candidates(prompt, 1) == ["blue"]


def test_mmcoa_item_5_a_table_is_the_language_model_that_wrote_it(tiny_model, tmp_path):
    said = {"red": ["blue", "tent"], "fox": ["dog", "bear", "tree"], "papi": ["but", "moth"], "##llon": ["##ter"], "photo": ["picture"]}
    lm, prompts = source(said), prompts_of(NAMES, TEMPLATES)
    path = tmp_path / "words.json"
    path.write_text(json.dumps(table_of(lm, prompts)))
    classifier = tiny_model.classifier(NAMES, TEMPLATES)
    by_model, by_table = (TextAttack(each)(classifier) for each in (lm, Table.read(str(path))))
    assert by_model.texts == by_table.texts != by_model.clean
    assert not any("[" in text or "##" in text for text in by_model.texts)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """Return the folder of a tiny random BERT whose vocabulary has whole words and pieces; needs `uv sync --extra bert`."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("bert")
    words = VOCABULARY.split()
    (folder / "vocab.txt").write_text("\n".join(words))
    torch.manual_seed(0)
    settings = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=len(words), **settings)).save_pretrained(folder)
    transformers.BertTokenizerFast(vocab={word: i for i, word in enumerate(words)}).save_pretrained(folder)
    return folder


def test_a_real_masked_language_model_from_a_folder(bert):
    lm = MaskedWords.read(str(bert))
    assert lm.lm.pieces("papillon") == ["papi", "##llon"]
    rows = lm.lm.likely(["a", "red", "fox"], 4)
    ids = lm.lm.tokenizer.convert_tokens_to_ids(["[CLS]", "a", "red", "fox", "[SEP]"])
    with torch.no_grad():
        logits = lm.lm.model(input_ids=torch.tensor([ids])).logits[0]
    assert rows == [lm.lm.tokenizer.convert_ids_to_tokens(row) for row in logits.topk(4).indices.tolist()]
    (prompt,) = prompts_of(["red fox"], ["a photo of a {}"])
    assert lm.candidates(prompt, 4)
    assert not set(lm.candidates(prompt, 4)) & {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "##llon"}


def test_a_folder_without_a_model_says_what_is_missing(tmp_path):
    with pytest.raises(UserError, match=r"needs vocab\.txt, config\.json and model\.safetensors"):
        MaskedWords.read(str(tmp_path))


def test_the_pipeline_writes_a_table_that_covers_a_protocol(bert, tmp_path):
    script = Path(__file__).parents[1] / "pipelines" / "words.py"
    table = tmp_path / "words.json"
    command = [sys.executable, str(script), str(bert), "--protocol", "smoke", "--to", "words.json", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"prompts of 2 sets: {table}" in done.stdout
    found = Table.read(str(table))
    assert all(words for words in found.entries.values())
