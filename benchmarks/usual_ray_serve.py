"""The usual Ray Serve pattern, as its documentation shows it: an ingress deployment calls a model deployment by its
handle, which batches with @serve.batch. serving.py measures against it.

    python benchmarks/usual_ray_serve.py MODEL PORT
"""

import signal
import sys

import torch
from fastapi import FastAPI
from pydantic import BaseModel
from ray import serve
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig
from transformers import AutoModelForSequenceClassification, AutoTokenizer

BATCH = 32
WAIT_S = 0.005  # half the default: kinder to a single client, and no worse for 32

app = FastAPI()


class Request(BaseModel):
    text: str


@serve.deployment(max_ongoing_requests=100)
class Model:
    def __init__(self, path: str) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.model = AutoModelForSequenceClassification.from_pretrained(path).eval()

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=WAIT_S)
    async def __call__(self, texts: list[str]) -> list[dict]:
        batch = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            probabilities = self.model(**batch).logits.softmax(-1)
        scores, best = probabilities.max(-1)
        names = self.model.config.id2label
        return [{"label": names[i], "score": score} for i, score in zip(best.tolist(), scores.tolist(), strict=True)]


@serve.deployment(max_ongoing_requests=100)
@serve.ingress(app)
class Ingress:
    def __init__(self, model: DeploymentHandle) -> None:
        self.model = model

    @app.post("/models/model/predict")
    async def predict(self, request: Request) -> dict:
        return await self.model.remote(request.text)


if __name__ == "__main__":
    path, port = sys.argv[1:]
    quiet = LoggingConfig(log_level="ERROR", enable_access_log=False)
    serve.start(http_options={"port": int(port)}, logging_config=quiet)
    serve.run(Ingress.options(logging_config=quiet).bind(Model.options(logging_config=quiet).bind(path)))
    signal.pause()
