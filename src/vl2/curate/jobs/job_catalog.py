"""Every job by the name that the command line gives it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from vl2.curate.jobs.answer_jobs import Recaption, RegenerateAnswer, ScoreWriting
from vl2.curate.jobs.question_jobs import DraftQa, TranslateQuery
from vl2.curate.jobs.task import DataJob
from vl2.data.setting_values import Values, arguments, nearest, settings_of
from vl2.errors import UserError

JOBS: Mapping[str, Callable[..., DataJob]] = {
    "recaption": Recaption,
    "regenerate": RegenerateAnswer,
    "score": ScoreWriting,
    "translate": TranslateQuery,
    "draft-qa": DraftQa,
}
_OURS = ("name", "sends_images", "needs_ocr", "meta")


def job_settings(name: str) -> list[str]:
    return settings_of(JOBS[name], without=_OURS)


def make_job(name: str, values: Values) -> DataJob:
    """Return a job with its settings. UserError for a name or a setting that there is not."""
    if name not in JOBS:
        raise UserError(f"no job is called {name!r}: {nearest(name, JOBS)}")
    return JOBS[name](**arguments(JOBS[name], values, f"the job {name}", without=_OURS))
