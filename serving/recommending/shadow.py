"""Scoring beside the champion: the version in shadow answers a share of the live requests again, for the log alone.

The work runs on the event loop after the answer is out, one request at a time, so that nobody waits for more than one
list. While one is waiting, others are left out and counted.
"""

import asyncio
import logging
import time
from dataclasses import replace
from functools import partial
from typing import Final

from recsys.monitoring.prediction_log import SHADOW, sampled
from serving.model_lifecycle.live_traffic import Assignment
from serving.model_lifecycle.served_model import ServedModel
from serving.observability.metrics import Metrics
from serving.recommending.answers import Answers, RecommendationOptions, RequestTrace
from serving.user_state.snapshots import UserSnapshot

PAUSE_S: Final = 0.02  # after the answer: it is on its way, and what came meanwhile goes first
log = logging.getLogger(__name__)


class ShadowScoring:
    """share: of the requests for one user. Used on the event loop alone."""

    def __init__(self, share: float, answers: Answers, metrics: Metrics) -> None:
        self._share, self._answers, self._metrics = share, answers, metrics
        self._waiting = False

    def after(
        self,
        trace: RequestTrace,
        model: ServedModel | None,
        user_id: int,
        snapshot: UserSnapshot,
        options: RecommendationOptions,
    ) -> None:
        """Score the request that has just been answered, where it belongs to the share; a further page does not."""
        if model is None or options.cursor is not None or not sampled(trace.request_id, self._share):
            return
        if self._waiting:
            self._metrics.count("shadow.skipped")
            return
        self._waiting = True
        options = replace(options, explain=False, paginate=False)
        work = partial(self._score, trace.request_id, model, user_id, snapshot, options)
        asyncio.get_running_loop().call_later(PAUSE_S, work)

    def _score(
        self,
        request_id: str,
        model: ServedModel,
        user_id: int,
        snapshot: UserSnapshot,
        options: RecommendationOptions,
    ) -> None:
        self._waiting = False
        trace = RequestTrace(request_id, time.perf_counter(), Assignment(model), role=SHADOW)
        try:
            trace.timings_ms["queue"] = 0.0
            self._answers.recommend(trace, user_id, snapshot, options)
            self._metrics.count("shadow.made")
        except Exception as error:  # whoever asked has long been answered
            self._metrics.count("shadow.failed")
            log.error("version %d in shadow failed: %s", model.version, error, exc_info=error)
