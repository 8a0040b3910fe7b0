"""Question sets: the topic files of open-domain question answering, to one JSON line a question.

Two source formats:
  * tab-separated `question<TAB>['answer', ...]`, the answers a Python list literal, either field
    in CSV quotes where it holds quotes of its own (NQ, TriviaQA);
  * JSON lines `{"question": ..., "answer": [...]}` (WebQuestions).
Nothing is dropped: a line that does not parse, or a count other than the known one, is an error.
"""

import ast
import csv
import json


class QuestionError(ValueError):
    """A topic file is not what this parser was written for."""


def unwrap(text):
    """Undoes CSV quoting that the TriviaQA files carry inside their fields (1,253 questions, some answers).

    Only text that can be nothing else is touched: quoted as a whole, every inner quote doubled, at
    least one such pair.
    """
    inner = text[1:-1]
    if text[:1] == text[-1:] == '"' and '""' in inner and '"' not in inner.replace('""', ""):
        return inner.replace('""', '"')
    return text


def _answers(value, where):
    if not isinstance(value, list) or not value or not all(isinstance(a, str) for a in value):
        raise QuestionError(f"{where}: the answers are not a non-empty list of strings")
    return value


def parse_tsv(line, where):
    """One `question<TAB>list` line to (question, answers)."""
    row = next(csv.reader([line], delimiter="\t"))
    if len(row) != 2:
        raise QuestionError(f"{where}: {len(row)} fields, not 2")
    try:
        value = ast.literal_eval(row[1])
    except (SyntaxError, ValueError) as error:
        raise QuestionError(f"{where}: the answers are not a list literal ({error})") from error
    return unwrap(row[0]), [unwrap(answer) for answer in _answers(value, where)]


def parse_json(line, where):
    """One `{"question", "answer"}` line to (question, answers)."""
    row = json.loads(line)
    return row["question"], _answers(row["answer"], where)


def convert(text, dataset, expected, parse):
    """Yields the output lines (bytes) of one topic file; ids count from 0 in file order."""
    # Not splitlines(): answers hold U+0085, U+2028 and the like.
    lines = text.split("\n")
    if lines and lines[-1] == "":
        lines.pop()
    if len(lines) != expected:
        raise QuestionError(f"{dataset}: {len(lines)} questions, not {expected}")
    for number, line in enumerate(lines):
        question, answers = parse(line.rstrip("\r"), f"{dataset} line {number + 1}")
        row = {"id": f"{dataset}-{number}", "question": question, "answers": answers}
        yield json.dumps(row, ensure_ascii=False).encode() + b"\n"
