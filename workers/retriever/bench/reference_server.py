"""A server of the reference's shape: FastAPI on uvicorn, one synchronous endpoint, faiss-cpu Flat, documents looked up
row by row. Only the encoder is a table. Prints its port.

    reference_server.py CORPUS.jsonl ROWS.f32 QUERIES.f32 DIMENSIONS
"""

import json
import socket
import sys
from typing import List, Optional

import faiss
import numpy as np
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

corpus_path, rows, queries, d = sys.argv[1:]
d = int(d)
faiss.omp_set_num_threads(1)
corpus = []
for line in open(corpus_path):
    passage = json.loads(line)
    corpus.append({"id": passage["id"], "contents": f'"{passage["title"]}"\n{passage["text"]}'})
index = faiss.IndexFlatIP(d)
index.add(np.fromfile(rows, np.float32).reshape(-1, d))
table = np.fromfile(queries, np.float32).reshape(-1, d)
app = FastAPI()


class QueryRequest(BaseModel):
    queries: List[str]
    topk: Optional[int] = None
    return_scores: bool = False


@app.post("/retrieve")
def retrieve(request: QueryRequest):
    k = request.topk or 3
    encoded = np.stack([table[int(query.split(" ")[1]) % len(table)] for query in request.queries])
    scores, ids = index.search(encoded, k)
    result = []
    for row_scores, row_ids in zip(scores.tolist(), ids.tolist()):
        documents = [corpus[int(at)] for at in row_ids]
        if request.return_scores:
            result.append([{"document": doc, "score": score} for doc, score in zip(documents, row_scores)])
        else:
            result.append(documents)
    return {"result": result}


listener = socket.socket()
listener.bind(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(sockets=[listener])
