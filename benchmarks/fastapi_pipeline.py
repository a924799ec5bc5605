"""FastAPI, uvicorn and transformers.pipeline, without Ray. serving.py measures against it.

python benchmarks/fastapi_pipeline.py MODEL PORT
"""

import sys

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import pipeline

path, port = sys.argv[1:]
classify = pipeline("text-classification", model=path, device="cpu", truncation=True)
app = FastAPI()


class Request(BaseModel):
    text: str


@app.post("/models/model/predict")
def predict(request: Request) -> dict:  # not async: FastAPI runs it in its thread pool
    return classify(request.text)[0]


uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning", access_log=False)
