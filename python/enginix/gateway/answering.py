"""Answer a checked request: compose LiteLLM's requests, try one server after the other, join the answers."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from enginix.gateway import response_rewrite
from enginix.gateway.balancer import REST_SECONDS, Balancer, Candidate
from enginix.gateway.call import TritonCall
from enginix.gateway.events import DONE, EventTooLarge
from enginix.gateway.exchange import App, Exchange, NoAnswer
from enginix.gateway.keys import Caller
from enginix.gateway.metrics import GatewayMetrics, PartMeter, RequestMeter
from enginix.gateway.request import (
    PARAMETERS,
    ROUTES,
    RequestRejected,
    build_triton_inputs,
    parse_prompts,
    parse_stop_words,
    parse_text_messages,
)
from enginix.gateway.spec import GatewayLimits

AnswerEvent = dict[str, Any] | str


@dataclass(frozen=True)
class CheckedRequest:
    """A checked request.

    Attributes:
        path: the request's route.
        body: the request's parameters, without those that count as absent.
        model: the model that the request's ``model`` resolves to.
        identity: the answer's id; ``None`` keeps the id of a server with OpenAI's interface.
        parts: bodies, one for each text of ``prompt``; for a server with OpenAI's interface one.
        call: the call to a Triton server, without the prompt; ``None`` for other servers.
    """

    path: str
    body: Mapping[str, Any]
    model: str
    identity: str | None
    parts: Sequence[Mapping[str, Any]]
    call: TritonCall | None

    @staticmethod
    def compose(
        path: str,
        body: Mapping[str, Any],
        model: str,
        request: str,
        *,
        is_triton: bool,
        limits: GatewayLimits,
    ) -> CheckedRequest:
        """Return the request, from a body that :func:`enginix.gateway.request.check_openai_request` accepts.

        Args:
            request: the request's id.
        """
        parameters = {
            name: body[name]
            for name, row in PARAMETERS.items()
            if body.get(name) is not None and not row.get("everywhere")
        }
        if not is_triton:
            return CheckedRequest(path, parameters, model, None, [parameters], None)
        call = TritonCall(
            build_triton_inputs(parameters),
            tuple(parse_stop_words(parameters.get("stop", []))),
            limits.default_max_tokens,
        )
        if ROUTES[path] == "chat":
            return CheckedRequest(path, parameters, model, f"chatcmpl-{request}", [parameters], call)
        parts = [{**parameters, "prompt": prompt} for prompt in parse_prompts(parameters["prompt"])]
        return CheckedRequest(path, parameters, model, f"cmpl-{request}", parts, call)

    @property
    def prompts(self) -> int:
        """Return the number of prompts, each of which counts as a request."""
        return max(1, len(_split_prompts(self.body.get("prompt"))))

    @property
    def has_several_choices(self) -> bool:
        """Tell whether an answer has several choices, or log-probabilities: LiteLLM's streams lose them."""
        several = self.prompts > 1 or self.body.get("n", 1) > 1
        return several or (ROUTES[self.path] == "completions" and self.body.get("logprobs") is not None)

    @property
    def is_stream(self) -> bool:
        """Tell whether the request asks for a streamed answer."""
        return bool(self.body.get("stream"))

    @property
    def include_usage(self) -> bool:
        """Tell whether the request asks for the usage in a stream."""
        return bool((self.body.get("stream_options") or {}).get("include_usage"))

    def call_of(self, part: Mapping[str, Any], meter: PartMeter) -> TritonCall | None:
        if self.call is None:
            return None
        if "messages" in part:
            # Contents are texts by now; LiteLLM's own template for messages is not used.
            prompt = {"messages": json.dumps(parse_text_messages(part["messages"]), ensure_ascii=False)}
        else:
            prompt = {"text_input": part["prompt"]}
        return TritonCall(
            {**self.call.question, **prompt},
            self.call.stop,
            self.call.max_tokens,
            model=str(self.body["model"]),
            see_piece=meter.see_piece,
        )


class Answering:
    """Answers one request.

    Args:
        width: parts that are answered at the same time.
        meter: measures the request.

    Attributes:
        error: the error that ended a stream after its first piece, if any.
    """

    def __init__(
        self,
        app: App,
        balancer: Balancer,
        question: CheckedRequest,
        caller: Caller,
        width: int,
        meter: RequestMeter | None = None,
    ) -> None:
        self._app, self._balancer, self._question, self._caller = app, balancer, question, caller
        self._width = width
        self._meter = meter or RequestMeter(GatewayMetrics(dict), ())
        self.error: dict[str, Any] | None = None

    async def whole(self) -> dict[str, Any]:
        """Return the whole answer.

        Raises:
            RequestRejected: no server answers.
        """
        places = asyncio.Semaphore(self._width)

        async def one(part: Mapping[str, Any]) -> dict[str, Any]:
            async with places, aclosing(self._attempts(part, None)) as answer:
                async for body in answer:
                    assert isinstance(body, dict)
                    return body
            raise RequestRejected("the model's server sent an invalid response", None, 502)

        tasks = [asyncio.ensure_future(one(part)) for part in self._question.parts]
        try:
            answers = await asyncio.gather(*tasks)
        finally:
            await _cancel_tasks(tasks)
        usages = [a["usage"] for a in answers if isinstance(a.get("usage"), dict)]
        if len(answers) == 1:
            return answers[0]
        if not all(a.get("choices") for a in answers):
            raise RequestRejected("the model's server sent an invalid response", None, 502)
        choices = [{**a["choices"][0], "index": i} for i, a in enumerate(answers)]
        return {**answers[0], "choices": choices, "usage": _sum_usages(usages)}

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Yield the answer's events as bytes.

        Raises:
            RequestRejected: no server answers, before the first piece. Later ``error`` is set.
        """
        parts = self._question.parts
        cleaners = [
            response_rewrite.EventRewriter(
                self._question.identity, self._model, index=i if len(parts) > 1 else None
            )
            for i in range(len(parts))
        ]
        async with aclosing(self._interleaved(cleaners)) as events:
            begun = False
            try:
                async for event in events:
                    if isinstance(event, str):
                        continue
                    if "error" in event:
                        self.error = event
                        return
                    begun = True
                    yield response_rewrite.encode_event(event)
            except RequestRejected as e:
                if not begun:
                    raise
                self.error = e.as_json()
                return
        usages = [c.usage for c in cleaners if c.usage is not None]
        if self._question.include_usage and usages:
            yield response_rewrite.encode_event(
                cleaners[0].usage_chunk(_sum_usages(usages) if len(parts) > 1 else usages[0])
            )
        yield response_rewrite.encode_event(DONE)

    @property
    def tokens(self) -> int:
        """Return the tokens of prompt and answer so far, also of an answer that its client left."""
        return self._meter.tokens

    @property
    def _model(self) -> str:
        return str(self._question.body["model"])

    async def _interleaved(
        self, cleaners: Sequence[response_rewrite.EventRewriter]
    ) -> AsyncGenerator[AnswerEvent, None]:
        """Yield the events of all parts as they come."""
        parts = self._question.parts
        if len(parts) == 1:
            async with aclosing(self._attempts(parts[0], cleaners[0])) as events:
                async for event in events:
                    yield event
            return
        places = asyncio.Semaphore(self._width)
        arrived: asyncio.Queue[AnswerEvent | BaseException | None] = asyncio.Queue(maxsize=16)

        async def one(part: Mapping[str, Any], cleaner: response_rewrite.EventRewriter) -> None:
            try:
                async with places, aclosing(self._attempts(part, cleaner)) as events:
                    async for event in events:
                        await arrived.put(event)
            except Exception as e:
                await arrived.put(e)
            else:
                await arrived.put(None)

        tasks = [asyncio.ensure_future(one(p, c)) for p, c in zip(parts, cleaners, strict=True)]
        try:
            running = len(tasks)
            while running:
                item = await arrived.get()
                if isinstance(item, BaseException):
                    raise item
                if item is None:
                    running -= 1
                else:
                    yield item
        finally:
            await _cancel_tasks(tasks)

    async def _attempts(
        self, part: Mapping[str, Any], cleaner: response_rewrite.EventRewriter | None
    ) -> AsyncGenerator[AnswerEvent, None]:
        """Ask one server after the other, until one has a first piece, or the whole answer.

        Raises:
            RequestRejected: the request is at fault, or the last server that was tried has failed.
        """
        failure: RequestRejected | None = None
        for candidate in self._balancer.candidates(self._question.model):
            begin, begun = time.monotonic(), False
            try:
                async with aclosing(self._attempt(candidate, part, cleaner)) as events:
                    async for event in events:
                        if not begun:
                            begun = True
                            self._balancer.succeeded(candidate.server, time.monotonic() - begin)
                        yield event
                return
            except RequestRejected as e:
                if begun or not _is_servers_fault(e):
                    raise
                failure = e
                if e.status != 429 and e.retry_after is None:
                    self._balancer.failed(candidate.server)
        assert failure is not None, "each model has a server"
        if failure.status == 503 and failure.retry_after is None:
            # By then the servers' health has been checked again.
            failure.retry_after = math.ceil(REST_SECONDS)
        raise failure

    async def _attempt(
        self, candidate: Candidate, part: Mapping[str, Any], cleaner: response_rewrite.EventRewriter | None
    ) -> AsyncGenerator[AnswerEvent, None]:
        """Ask one server; yield the events of a stream from the first piece on, or one whole answer."""
        body = {**part, "model": candidate.deployment}
        if cleaner is not None:
            # Token limits and metrics need the usage, too.
            body["stream_options"] = {"include_usage": True}
        meter, is_shown, is_lost = self._meter.part(), False, False
        call = self._question.call_of(part, meter) if candidate.server.kind == "triton" else None
        exchange = Exchange(self._app, self._question.path, self._caller, body, call)
        try:
            status, kind = await exchange.start()
            if exchange.recorded_answer.is_redirect:
                raise RequestRejected("the model's server redirects requests to another address", None, 502)
            if status >= 400:
                raw = await exchange.read()
                # The handler's own error counts, not the one that LiteLLM makes of it.
                raise (call and call.failure) or response_rewrite.rewrite_refusal(raw, status)
            if cleaner is None:
                raw = await exchange.read()
                answer = response_rewrite.rewrite_answer(
                    raw, self._question.identity, self._model, exchange.recorded_answer.read_whole()
                )
                if call is not None:
                    answer["usage"] = call.usage
                meter.see_usage(answer.get("usage"))
                yield answer
                return
            cleaner.begin_answer(exchange.recorded_answer)
            if not kind.startswith("text/event-stream"):
                raise RequestRejected("the model's server did not send an event stream", None, 502)
            if (
                call is None
                and self._question.has_several_choices
                and not exchange.recorded_answer.is_recorded
            ):
                reason = "the model's server sent a stream that is converted, which keeps one choice alone"
                raise RequestRejected(f"{reason}; ask without stream", None, 502)
            async with aclosing(_from_first_piece(exchange, cleaner)) as events:
                async for event in events:
                    is_shown = True
                    if call is None and response_rewrite.chunk_has_tokens(event):
                        # Servers count an answer's tokens at its end; a chunk has one, as a rule.
                        meter.see_token()
                    elif call is not None:
                        meter.count()
                    yield event
        except (NoAnswer, EventTooLarge, RequestRejected) as e:
            is_lost = not is_shown
            if isinstance(e, RequestRejected):
                raise
            raise RequestRejected("the model's server broke the answer off", None, 502) from e
        finally:
            if call is not None and cleaner is not None:
                cleaner.usage = call.usage
            if not is_lost:
                meter.see_usage(cleaner.usage if cleaner is not None else None)
                meter.count()
            await exchange.close()


async def _from_first_piece(
    exchange: Exchange, cleaner: response_rewrite.EventRewriter
) -> AsyncGenerator[AnswerEvent, None]:
    """Yield a stream's events; hold back those before its first piece, as another server may take over.

    Raises:
        RequestRejected: the stream failed before its first piece.
    """
    held_events: list[AnswerEvent] = []
    begun = done = False
    async for raw in exchange.body():
        for event in cleaner.read(raw, more=True):
            done = done or event == DONE
            if isinstance(event, dict) and "error" in event:
                error = _stream_error(exchange.call, event, cleaner.status)
                if not begun:
                    raise error
                yield error.as_json()
                return
            if begun:
                yield event
                continue
            held_events.append(event)
            if isinstance(event, dict) and any(map(response_rewrite.has_content, event.get("choices") or ())):
                begun = True
                for early in held_events:
                    yield early
    if not done:
        raise RequestRejected("the model's server broke the answer off", None, 502)
    if not begun:
        for early in held_events:
            yield early


def _stream_error(call: TritonCall | None, event: Mapping[str, Any], status: int) -> RequestRejected:
    if call is not None and call.failure is not None:
        return call.failure
    error = event["error"]
    return RequestRejected(error["message"], error["param"], status, error["code"])


def _is_servers_fault(error: RequestRejected) -> bool:
    """Tell whether the server is at fault, so that another server may answer."""
    return error.status >= 500 or error.status in (408, 429)


def _split_prompts(prompt: Any) -> list[Any]:
    """Return the prompts of a ``prompt`` that has several: texts, or lists of token ids."""
    return prompt if isinstance(prompt, list) and any(isinstance(p, str | list) for p in prompt) else []


def _sum_usages(usages: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    return {name: sum(int(u.get(name) or 0) for u in usages) for name in names}


async def _cancel_tasks(tasks: Sequence[asyncio.Future[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
