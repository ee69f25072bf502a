"""The reference child: `python -m openmint_evaluator.reference --base FOLDER`, JSON lines in and out.

A process of its own, so that the evaluator holds no model, a native crash costs one evaluation, and the memory goes
back when it ends. One intra-op thread: the reference must not depend on how many cores are free.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pydantic import BaseModel

from openmint.errors import OpenmintError
from openmint_evaluator.reference_messages import (
    REQUEST,
    ComputedLogprobs,
    ComputeLogprobs,
    DescribeReference,
    EncodedTexts,
    EncodeRows,
    EncodeTexts,
    ReferenceDescription,
    Refusal,
    Request,
)

if TYPE_CHECKING:
    from openmint_evaluator.reference_model import ReferenceModel


def answer(model: "ReferenceModel", request: Request) -> BaseModel:
    """Carry out one request."""
    from openmint_evaluator.rendering import encode_rows, encode_texts

    match request:
        case EncodeTexts():
            return EncodedTexts(token_ids=encode_texts(model.tokenizer, request.texts))
        case EncodeRows():
            return encode_rows(model.tokenizer, request.rows, request.labels, request.max_tokens)
        case ComputeLogprobs():
            if request.adapter is None:
                return ComputedLogprobs(by_scale=[model.base_logprobs(request.sequences)])
            folder = Path(request.adapter)
            return ComputedLogprobs(by_scale=model.adapter_logprobs(folder, request.scales, request.sequences))
        case DescribeReference():
            return ReferenceDescription(text=model.describe())


def serve(model: "ReferenceModel", requests: TextIO, answers: TextIO) -> None:
    """Answer line by line until the parent closes its end."""
    for line in requests:
        try:
            reply = answer(model, REQUEST.validate_json(line))
        except OpenmintError as error:
            reply = Refusal(code=error.code, detail=error.detail)
        except Exception as error:
            reply = Refusal(code="internal", detail=f"{type(error).__name__}: {error}"[:1000])
        answers.write(reply.model_dump_json() + "\n")
        answers.flush()


def main() -> None:
    """Keep the protocol's stream apart from standard output, where libraries print."""
    parser = argparse.ArgumentParser(description="Logprobs of stock PEFT in fp32, for the evaluator")
    parser.add_argument("--base", type=Path, required=True, help="the base model's folder")
    arguments = parser.parse_args()
    if not (arguments.base / "config.json").is_file():
        sys.exit(f"there is no base model in {arguments.base}")
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    import torch

    from openmint_evaluator.reference_model import ReferenceModel

    torch.set_num_threads(1)
    serve(ReferenceModel(arguments.base), sys.stdin, answers)


if __name__ == "__main__":
    main()
