"""An OpenAI-compatible endpoint around a small random vision-language model: real HTTP, logits and pictures.

Requests and answers have the fields that the API's own types have, and no others. It answers as vLLM does:
log-probabilities are those of the model, and of the JSON texts that a schema allows it writes the likeliest. Asked for
neither, it writes how likely some words are, on a scale from 1 to 5.
"""

import base64
import io
import json
import threading
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import torch
from fastapi import FastAPI, Header, HTTPException, Request, Response
from openai.types import Model
from openai.types.chat import ChatCompletion
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming
from PIL import Image
from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python
from starlette.middleware.base import RequestResponseEndpoint
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

NAME = "tiny-judge"
IMAGE = "<image>"
HEAD = '{"score":'
WORDS = ("yes", "Yes", "no", " NO", "maybe", *["Is", "this", "a", "red", "blue", "dog", "cat"], "?", HEAD, *"234}")
RATED = ("red", "blue")
"""The words of which it writes how likely they are."""
KEY = "secret-key"
OWN_FIELDS = ("chat_template_kwargs",)
"""Those of requests to vLLM that the API doesn't have."""
SIDE, PATCH = 16, 8
REQUEST = TypeAdapter(CompletionCreateParamsNonStreaming)


@dataclass
class Endpoint:
    """The model, and what it is asked."""

    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    failures: list[int] = field(default_factory=list)
    """Statuses that the next requests get in place of an answer."""
    says: str | None = None
    """What it writes in place of the likeliest answer."""
    page: str | None = None
    """A page of the type JSON, which everybody gets in place of an answer."""
    gate: threading.Barrier | None = None
    """Holds questions back until so many of them wait."""
    waiting: int = 0
    max_waiting: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        vocabulary = {word: number for number, word in enumerate((IMAGE, "<unknown>", *WORDS))}
        self.words = list(vocabulary)
        self.tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
        self.tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        torch.manual_seed(0)
        vision = CLIPVisionConfig(**sizes, image_size=SIDE, patch_size=PATCH, projection_dim=16)
        text = LlamaConfig(**sizes, num_key_value_heads=2, vocab_size=len(vocabulary), initializer_range=1.0)
        config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=0)
        self.model = LlavaForConditionalGeneration(config).eval()

    @torch.no_grad()
    def logprobs(self, pictures: list[np.ndarray], text: str, answer: str = "") -> torch.Tensor:
        """Log-probabilities of the token after a text about pictures, and after each of the answer's, float32
        [tokens + 1, words]."""
        cells = [0] * (SIDE // PATCH) ** 2 * len(pictures)
        ids = [*cells, *self.tokenizer.encode(text).ids, *self.tokens(answer)]
        small = [np.asarray(Image.fromarray(picture).resize((SIDE, SIDE))) for picture in pictures]
        pixels = torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2) / 127.5 - 1
        logits = self.model(input_ids=torch.tensor([ids]), pixel_values=pixels).logits[0]
        return logits[-1 - len(self.tokens(answer)) :].log_softmax(-1)

    def rating(self, pictures: list[np.ndarray], text: str, word: str) -> float:
        """How likely a word is after a text about pictures, from 1 to 5."""
        return 1 + 4 * float(self.logprobs(pictures, text)[0, self.words.index(word)].exp())

    def tokens(self, answer: str) -> list[int]:
        """The tokens of a JSON answer."""
        return [self.words.index(word) for word in (HEAD, *answer.removeprefix(HEAD))] if answer else []

    def likelihood(self, pictures: list[np.ndarray], text: str, answer: str) -> float:
        """Log-probability of a whole answer."""
        steps = zip(self.logprobs(pictures, text, answer), self.tokens(answer), strict=False)
        return sum(float(step[token]) for step, token in steps)

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.middleware("http")
        async def page_first(request: Request, answer: RequestResponseEndpoint) -> Response:
            if self.page is None:
                return await answer(request)
            return Response(self.page, media_type="application/json")

        @app.get("/v1/models")
        def served(authorization: Annotated[str | None, Header()] = None) -> dict[str, Any]:
            self._let_in(authorization)
            return {"object": "list", "data": [Model(id=NAME, object="model", created=0, owned_by="tests")]}

        @app.post("/v1/chat/completions")
        def complete(body: dict[str, Any], authorization: Annotated[str | None, Header()] = None) -> ChatCompletion:
            self._let_in(authorization)
            with self.lock:
                self.waiting += 1
                self.max_waiting = max(self.max_waiting, self.waiting)
            try:
                if self.gate:
                    self.gate.wait(timeout=60)
                return self._completed(body)
            finally:
                with self.lock:
                    self.waiting -= 1

        return app

    def _let_in(self, authorization: str | None) -> None:
        self.keys.append(authorization)
        if authorization != f"Bearer {KEY}":
            raise HTTPException(401, "no such key")

    def _completed(self, body: dict[str, Any]) -> ChatCompletion:
        self.requests.append(body)
        refuse_unknown(body)
        if self.failures:
            raise HTTPException(self.failures.pop(), "busy", {"retry-after-ms": "1"})
        (message,) = body["messages"]
        parts = message["content"]
        pictures = [picture_of(part["image_url"]["url"]) for part in parts if part["type"] == "image_url"]
        text = " ".join(part["text"] for part in parts if part["type"] == "text")
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop", "logprobs": None}
        if schema := body.get("response_format"):
            score = schema["json_schema"]["schema"]["properties"]["score"]
            answers = [json.dumps({"score": n}).replace(" ", "") for n in range(score["minimum"], score["maximum"] + 1)]
            said = max(answers, key=lambda answer: self.likelihood(pictures, text, answer))
        elif "top_logprobs" not in body:
            said = "\n".join(f"{word} Score (1-5): {self.rating(pictures, text, word)}" for word in RATED)
        else:
            best, tokens = self.logprobs(pictures, text)[0].topk(min(body["top_logprobs"], len(self.words)))
            top = [{"token": self.words[t], "logprob": float(p)} for p, t in zip(best, tokens, strict=True)]
            said = top[0]["token"]
            choice["logprobs"] = {"content": [{**top[0], "top_logprobs": top}], "refusal": None}
        choice["message"] = {"role": "assistant", "content": self.says or said}
        whole = {"id": "1", "object": "chat.completion", "created": 0, "model": body["model"], "choices": [choice]}
        return ChatCompletion.model_validate(whole, strict=True, extra="forbid")


def refuse_unknown(body: dict[str, Any]) -> None:
    """Raises HTTPException for what isn't a request by the API's own types, to the letter."""
    own = {name: value for name, value in body.items() if name not in OWN_FIELDS}
    try:
        to_jsonable_python(REQUEST.validate_python(own, strict=True, extra="forbid"))  # which looks into iterables too
    except ValidationError as error:
        raise HTTPException(422, str(error)) from error


def picture_of(url: str) -> np.ndarray:
    """The picture in a data URL, uint8 [height, width, 3]."""
    data = base64.b64decode(url.removeprefix("data:image/png;base64,"), validate=True)
    return np.asarray(Image.open(io.BytesIO(data)))
