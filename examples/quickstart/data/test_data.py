"""Tests of the converters on small inputs; run by `make test`."""

import struct
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import e5
import fetch
import multihop
import questions
import sources


class Questions(unittest.TestCase):
    def test_list_literals_and_quotes(self):
        cases = {
            "who is it\t['A', \"B's\"]": ("who is it", ["A", "B's"]),
            "who\t\"[\"\"B's\"\", 'A']\"": ("who", ["B's", "A"]),
            '"""Who said, """"no""""?"""\t[\'He\']': ('Who said, "no"?', ["He"]),
            'of "Lolita"?\t[\'"""Macbeth"" by him"\']': ('of "Lolita"?', ['"Macbeth" by him']),
        }
        for line, expected in cases.items():
            self.assertEqual(questions.parse_tsv(line, "here"), expected)

    def test_real_quotes_stay(self):
        for text in ('"Heroes"', '"a" and "b"', '"', '""', "", 'x ""y""'):
            self.assertEqual(questions.unwrap(text), text)

    def test_nothing_is_dropped(self):
        rows = list(questions.convert("q\u2028r\t['a\\x85']\n", "nq", 1, questions.parse_tsv))
        self.assertEqual(rows, ['{"id": "nq-0", "question": "q\u2028r", "answers": ["a\u0085"]}\n'.encode()])
        for text, count in (("q\t['a']\n", 2), ("q\t[]\n", 1), ("q\n", 1), ("q\t__import__('os')\n", 1)):
            with self.assertRaises(questions.QuestionError):
                list(questions.convert(text, "nq", count, questions.parse_tsv))


class Dequantise(unittest.TestCase):
    def test_low_nibbles_come_first(self):
        block = struct.pack("<e", 0.5) + bytes(i | (15 - i) << 4 for i in range(16))
        values = struct.unpack("<32e", e5.dequantise(block))
        self.assertEqual(values, tuple(0.5 * (i - 8) for i in [*range(16), *range(15, -1, -1)]))

    def test_other_files_are_refused(self):
        with self.assertRaises(e5.E5Error):
            e5.Container(b"GGUF" + bytes(64))


class Pins(unittest.TestCase):
    def test_every_output_and_package_is_pinned(self):
        pins = fetch.read_manifest()
        outputs = []
        for tier in sources.TIERS.values():
            for source in tier:
                outputs += source.outputs
                for package in source.packages:
                    self.assertRegex(fetch.requirement(source, package)[1], "^[0-9a-f]{64}$")
                works = [file for work in source.works for file in work.files]
                self.assertEqual(sorted(works), sorted(source.outputs), "every file has its attribution")
        self.assertEqual(sorted(pins), sorted(outputs))


PASSAGES = {
    "Ghana": "Ghana is a country in West Africa. It has a coast.",
    "Accra": "Accra is the capital and largest city of Ghana, on the Gulf of Guinea.",
    "Kumasi": "Kumasi is a city in the Ashanti Region of Ghana. It is old.",
    "Togo": "Togo is a country in West Africa, between Ghana and Benin.",
    "Lake Volta": "Lake Volta is a lake in Ghana and Togo. It is large.",
    "Port": "A port is a place for ships.",
    "Papua": "Papua is a country in Oceania. Its capital is Port Moresby.",
    "Strike": "Strike is a 1925 silent film directed by Sergei Eisenstein. It was praised.",
    "Sergei Eisenstein": "Sergei Eisenstein was a Soviet film director. He was born in Riga.",
}


class Multihop(unittest.TestCase):
    def make(self):
        import json

        lines = [json.dumps({"title": title, "text": text}) for title, text in PASSAGES.items()]
        return [row for _, rows in multihop.rows(multihop.Corpus(lines)) for row in rows]

    def test_a_question_needs_two_passages_and_is_true(self):
        found = {(row["kind"], row["answers"][0], *row["evidence"]) for row in self.make()}
        wanted = {
            ("capital", "Accra", "Kumasi", "Accra"),
            ("region", "West Africa", "Accra", "Ghana"),
            ("nationality", "Soviet", "Strike", "Sergei Eisenstein"),
        }
        # a lake in two countries, and a capital without a passage, make none
        self.assertEqual(found, wanted)
        self.assertEqual(self.make(), self.make())

    def test_parts_are_as_large_as_they_say(self):
        names = [f"title {n}" for n in range(3000)]
        sides = [multihop.split_of(name) for name in names]
        for name, percent in multihop.SPLITS:
            self.assertAlmostEqual(sides.count(name) / 30, percent, delta=3)

    def test_the_whole_set_is_the_pinned_one(self):
        import hashlib
        import json
        import os

        root = Path(os.environ.get("S3_DATA") or Path(__file__).resolve().parents[3] / ".s3" / "data")
        source = root / "corpus" / "wiki-vital.jsonl"
        if not source.is_file():
            self.skipTest(f"{source} is not there; `make data` fetches it")
        with open(source, encoding="utf-8") as lines:
            made = dict(multihop.rows(multihop.Corpus(lines)))
        for name, rows in made.items():
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
            self.assertEqual((len(rows), hashlib.sha256(text).hexdigest()[:16]), multihop.PINNED[name])
        trained = {title for name in ("train", "dev") for row in made[name] for title in row["evidence"][1:]}
        held_out = {title for row in made["test"] for title in row["evidence"][1:]}
        self.assertFalse(trained & held_out, "no passage that says an answer of the test set is trained on")


if __name__ == "__main__":
    unittest.main()
