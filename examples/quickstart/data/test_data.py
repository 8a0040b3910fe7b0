"""Tests of the converters on small inputs; run by `make test`."""

import struct
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import e5
import fetch
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


if __name__ == "__main__":
    unittest.main()
