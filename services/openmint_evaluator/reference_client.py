"""The evaluator's side of the reference child: started when needed, kept warm, ended when idle."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import TypeVar

import structlog
from pydantic import BaseModel, JsonValue, ValidationError

from openmint.errors import BadAdapter, BadDataset, TryAgain
from openmint_evaluator.encoded_rows import EncodedDataset, EncodedRow
from openmint_evaluator.reference_messages import (
    ComputedLogprobs,
    ComputeLogprobs,
    DescribeReference,
    EncodedRows,
    EncodedTexts,
    EncodeRows,
    EncodeTexts,
    ReferenceDescription,
    Refusal,
)

log = structlog.get_logger()

MAX_LINE_BYTES = 64 * 1024 * 1024
"""An answer about ten thousand rows has some megabytes."""

AnswerT = TypeVar("AnswerT", bound=BaseModel)


class ReferenceFailed(TryAgain):
    """The reference child ended or did not answer in time."""

    code = "reference_failed"


class ReferenceChild:
    """One child process over one base folder. Calls wait for each other.

    Raises in every call: ReferenceFailed when the child is gone or slow (a retry starts a new one), BadAdapter when
    stock PEFT can't load the folder, BadDataset when rows can't be rendered.
    """

    def __init__(self, base_folder: Path, timeout_s: float) -> None:
        self.base_folder = base_folder
        self._timeout_s = timeout_s
        self._process: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()
        self.last_used_s = 0.0

    @property
    def is_busy(self) -> bool:
        """Whether a call is under way."""
        return self._lock.locked()

    async def describe(self) -> str:
        """The software that the reference rests on."""
        return (await self._call(DescribeReference(), ReferenceDescription)).text

    async def encode_texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of plain texts."""
        return (await self._call(EncodeTexts(texts=list(texts)), EncodedTexts)).token_ids

    async def encode_rows(
        self, rows: Sequence[dict[str, JsonValue]], labels: Sequence[str], max_tokens: int
    ) -> EncodedDataset:
        """Held-out rows and labels as token ids."""
        request = EncodeRows(rows=list(rows), labels=list(labels), max_tokens=max_tokens)
        encoded = await self._call(request, EncodedRows)
        return EncodedDataset(
            rows=tuple(EncodedRow(tuple(p), tuple(c), label) for p, c, label in encoded.rows),
            labels=tuple(tuple(label) for label in encoded.labels),
            rendering=encoded.rendering,
            left_out=encoded.left_out,
        )

    async def logprobs(
        self, adapter: Path | None, sequences: Sequence[Sequence[int]], scales: Sequence[float] = (1.0,)
    ) -> list[list[float]]:
        """Per scale, the logprobs of all sequences one after the other; adapter None is the base."""
        request = ComputeLogprobs(
            adapter=None if adapter is None else str(adapter),
            scales=list(scales),
            sequences=[list(sequence) for sequence in sequences],
        )
        return (await self._call(request, ComputedLogprobs)).by_scale

    async def close(self) -> None:
        """End the child."""
        process, self._process = self._process, None
        if process is None or process.returncode is not None:
            return
        process.kill()
        await process.wait()

    async def _call(self, request: BaseModel, answer: type[AnswerT]) -> AnswerT:
        async with self._lock:
            self.last_used_s = asyncio.get_running_loop().time()
            try:
                async with asyncio.timeout(self._timeout_s):
                    line = await self._exchange(request.model_dump_json())
            except BaseException as error:
                # Whatever the child would still say belongs to a question that nobody asks any more.
                await self.close()
                if isinstance(error, TimeoutError):
                    raise ReferenceFailed(f"the reference did not answer in {self._timeout_s:.0f} s") from error
                if isinstance(error, OSError | ValueError):
                    raise ReferenceFailed(f"the reference child ended: {error}") from error
                raise
            finally:
                self.last_used_s = asyncio.get_running_loop().time()
        try:
            return answer.model_validate_json(line)
        except ValidationError:
            refusal = Refusal.model_validate_json(line)
        if refusal.code == BadDataset.code:
            raise BadDataset(refusal.detail)
        if refusal.code == BadAdapter.code:
            raise BadAdapter(refusal.detail)
        raise ReferenceFailed(f"the reference failed: {refusal.detail}")

    async def _exchange(self, line: str) -> bytes:
        process = await self._running()
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(line.encode() + b"\n")
        await process.stdin.drain()
        reply = await process.stdout.readline()
        if not reply.endswith(b"\n"):
            code = await process.wait()
            raise ReferenceFailed(f"the reference child ended with code {code}")
        return reply

    async def _running(self) -> asyncio.subprocess.Process:
        if self._process is None or self._process.returncode is not None:
            argv = (sys.executable, "-m", "openmint_evaluator.reference", "--base", str(self.base_folder))
            self._process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
                limit=MAX_LINE_BYTES,
            )
            log.info("reference.started", base_folder=str(self.base_folder), pid=self._process.pid)
        return self._process


class ReferencePool:
    """At most one warm child: of the base that was evaluated last. Ended after `idle_s` without a call."""

    def __init__(self, timeout_s: float, idle_s: float) -> None:
        self._timeout_s = timeout_s
        self._idle_s = idle_s
        self._child: ReferenceChild | None = None

    async def child(self, base_folder: Path) -> ReferenceChild:
        """The child for this base; that of another base is ended."""
        if self._child is not None and self._child.base_folder != base_folder:
            await self._child.close()
            self._child = None
        if self._child is None:
            self._child = ReferenceChild(base_folder, self._timeout_s)
        return self._child

    async def end_when_idle(self) -> None:
        """Ends the child if nobody used it for a while; call it now and then."""
        child = self._child
        if child is None or child.is_busy:
            return
        if asyncio.get_running_loop().time() - child.last_used_s > self._idle_s:
            await child.close()

    async def close(self) -> None:
        """End the child."""
        if self._child is not None:
            await self._child.close()


@contextlib.asynccontextmanager
async def open_references(timeout_s: float, idle_s: float) -> AsyncGenerator[ReferencePool]:
    """A pool that ends its child on leaving."""
    pool = ReferencePool(timeout_s, idle_s)
    try:
        yield pool
    finally:
        await pool.close()
