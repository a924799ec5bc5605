"""FastAPI, uvicorn and transformers.pipeline, without Ray. serving.py measures against it.

python benchmarks/fastapi_pipeline.py MODEL PORT [THREADS]   # torch's threads for each request, else all cores
"""

import sys

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import pipeline

path, port, *threads = sys.argv[1:]
if threads:
    torch.set_num_threads(int(threads[0]))
classify = pipeline("text-classification", model=path, device="cpu", truncation=True)
app = FastAPI()


class Request(BaseModel):
    text: str


@app.post("/models/model/predict")
def predict(request: Request) -> dict:  # not async: FastAPI runs it in its thread pool
    return classify(request.text)[0]


uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning", access_log=False)
