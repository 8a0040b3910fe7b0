"""Trains a cross-encoder for the table of docs/retrieval.md: all-MiniLM-L6-v2 with a head, on questions of the
development sets whose answer stands in one of BM25's first thirty articles.

    reranker.py pairs PROGRAM DATA OUT.json.gz      candidates by `measure bm25`; standard library only
    reranker.py train OUT.json.gz MODEL FOLDER      needs torch, safetensors, tokenizers; a GPU makes it minutes

Listwise: of one article with an answer and seven without, the first should score highest. FOLDER gets config.json,
model.safetensors and tokenizer.json as a reranker of the retriever reads them.
"""

import gzip
import json
import pathlib
import random
import shutil
import string
import subprocess
import sys

DEPTH, GROUP, BATCH, EPOCHS, RATE, TOKENS, SEED = 30, 8, 16, 4, 5e-5, 256, 11
BARE = str.maketrans(string.punctuation, " " * len(string.punctuation))


def plain(text):
    """Words without punctuation and articles, a space at both ends."""
    words = [word for word in text.lower().translate(BARE).split() if word not in ("a", "an", "the")]
    return f" {' '.join(words)} "


def pairs(program, data, out):
    data = pathlib.Path(data)
    corpus_path, queries = data / "corpus/wiki-vital.jsonl", pathlib.Path(str(out) + ".queries")
    corpus = [json.loads(line) for line in corpus_path.open()]
    rows = {passage["id"]: at for at, passage in enumerate(corpus)}
    texts = [plain(f"{passage['title']} {passage['text']}") for passage in corpus]
    asked = [json.loads(line) for name in ("nq-dev", "triviaqa-dev")
             for line in (data / f"questions/{name}.jsonl").open()]
    queries.write_text("".join(" ".join(one["question"].split()) + "\n" for one in asked))
    ours = subprocess.Popen([program, "bm25", corpus_path, queries], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                            text=True)
    ours.stdout.readline()
    found = json.loads(ours.communicate(f"{DEPTH}\n")[0])["found"]
    queries.unlink()
    kept = []
    for one, ranking in zip(asked, found, strict=True):
        question = plain(one["question"])
        golds = [plain(answer) for answer in one["answers"]]
        golds = [gold for gold in golds if len(gold) >= 6 and not gold.strip().isdigit() and gold not in question]
        ranking = [rows[name] for name, _ in ranking]
        right = [row for row in ranking if any(gold in texts[row] for gold in golds)]
        wrong = [row for row in ranking if row not in right]
        if right and len(wrong) >= GROUP - 1:
            kept.append([one["question"], right[:4], wrong])
    passages = [f"(Title: {passage['title']}) {passage['text']}" for passage in corpus]
    with gzip.open(out, "wt") as file:
        json.dump({"questions": kept, "passages": passages}, file)
    print(f"{len(kept)} questions of {len(asked)}")


def train(pairs_path, model, folder):
    import torch
    import torch.nn.functional as F
    from safetensors.torch import load_file, save_file
    from tokenizers import Tokenizer

    model, folder = pathlib.Path(model), pathlib.Path(folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with gzip.open(pairs_path, "rt") as file:
        read = json.load(file)
    questions, passages = read["questions"], read["passages"]
    config = json.loads((model / "config.json").read_text())
    layers, heads, h, eps = (config[key] for key in
                             ("num_hidden_layers", "num_attention_heads", "hidden_size", "layer_norm_eps"))
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding(pad_id=0)
    torch.manual_seed(SEED)
    w = {name: value.float() for name, value in load_file(model / "model.safetensors").items()
         if value.is_floating_point()}
    w["pooler.dense.weight"], w["pooler.dense.bias"] = torch.eye(h), torch.zeros(h)
    w["classifier.weight"], w["classifier.bias"] = 0.02 * torch.randn(1, h), torch.zeros(1)
    w = {name: torch.nn.Parameter(value.to(device)) for name, value in w.items()}
    linear = lambda x, name: F.linear(x, w[name + ".weight"], w[name + ".bias"])
    norm = lambda x, name: F.layer_norm(x, (h,), w[name + ".weight"], w[name + ".bias"], eps)

    def scores(batch, training):
        encoded = tokenizer.encode_batch(batch)
        put = lambda lists: torch.tensor(lists, device=device)
        ids, kinds = put([one.ids for one in encoded]), put([one.type_ids for one in encoded])
        mask = put([one.attention_mask for one in encoded]).bool()[:, None, None, :]
        rows, n = ids.shape
        drop = lambda x: F.dropout(x, 0.1, training)
        x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.position_embeddings.weight"][:n] \
            + w["embeddings.token_type_embeddings.weight"][kinds]
        x = drop(norm(x, "embeddings.LayerNorm"))
        split = lambda x: x.view(rows, n, heads, -1).transpose(1, 2)
        for at in range(layers):
            p = f"encoder.layer.{at}."
            q, k, v = (split(linear(x, p + f"attention.self.{part}")) for part in ("query", "key", "value"))
            o = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(rows, n, h)
            x = norm(drop(linear(o, p + "attention.output.dense")) + x, p + "attention.output.LayerNorm")
            up = F.gelu(linear(x, p + "intermediate.dense"))
            x = norm(drop(linear(up, p + "output.dense")) + x, p + "output.LayerNorm")
        return linear(torch.tanh(linear(x[:, 0], "pooler.dense")), "classifier")[:, 0]

    random.seed(SEED)
    random.shuffle(questions)
    held, questions = questions[:200], questions[200:]

    def accuracy():
        """Share of held-out groups whose article with the answer scores highest."""
        drawn, right = random.Random(1), 0
        with torch.no_grad(), torch.autocast(device, torch.bfloat16):
            for question, good, bad in held:
                group = [good[0], *drawn.sample(bad, GROUP - 1)]
                right += int(scores([(question, passages[at]) for at in group], False).argmax() == 0)
        return right / len(held)

    steps = EPOCHS * (len(questions) // BATCH)
    adamw = torch.optim.AdamW(w.values(), lr=RATE, weight_decay=0.01)
    rate = torch.optim.lr_scheduler.LambdaLR(adamw, lambda at: min(1, at / 50, (steps - at) / (steps - 50)))
    print(f"{device}, {len(questions)} questions, {steps} steps; held out before: {accuracy():.3f}", flush=True)
    for epoch in range(EPOCHS):
        random.shuffle(questions)
        total = 0.0
        for first in range(0, len(questions) - BATCH + 1, BATCH):
            batch = []
            for question, good, bad in questions[first : first + BATCH]:
                group = [random.choice(good), *random.sample(bad, GROUP - 1)]
                batch += [(question, passages[at]) for at in group]
            with torch.autocast(device, torch.bfloat16):
                found = scores(batch, True).float().view(BATCH, GROUP)
            loss = F.cross_entropy(found, torch.zeros(BATCH, dtype=torch.long, device=device))
            adamw.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(w.values(), 1.0)
            adamw.step()
            rate.step()
            total += loss.item()
        print(f"epoch {epoch + 1}: loss {total / (len(questions) // BATCH):.3f}, held out {accuracy():.3f}", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.detach().half().cpu().contiguous() for name, value in w.items()},
              folder / "model.safetensors")
    for name in ("config.json", "tokenizer.json"):
        shutil.copyfile(model / name, folder / name)


{"pairs": pairs, "train": train}[sys.argv[1]](*sys.argv[2:])
