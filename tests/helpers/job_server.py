"""A stand-in for ray.job_submission.JobSubmissionClient: keeps jobs in memory, as Ray's job server would."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from typing import Any

from ray.job_submission import JobDetails, JobStatus, JobType


class JobServer:
    """Jobs in memory. `ends`: the statuses that a followed job takes, one per connection; `log`: what it prints."""

    def __init__(self, *jobs: JobDetails, ends: tuple[str, ...] = ("SUCCEEDED",), log: str = "one\ntwo\n") -> None:
        self.jobs = {str(job.submission_id): job for job in jobs}
        self.ends = iter(ends)
        self.log = log
        self.sent: list[dict[str, Any]] = []
        self.refusal: Exception | None = None
        self.drop_after: int | None = None
        self.clock = itertools.count(1_700_000_000_000, 1000)

    def list_jobs(self) -> list[JobDetails]:
        return [*self.jobs.values(), job_details(None, "RUNNING")]  # a driver that nobody submitted

    def submit_job(
        self,
        *,
        entrypoint: str,
        submission_id: str | None = None,
        runtime_env: dict[str, Any] | None = None,
        metadata: dict[str, str] | None = None,
    ) -> str:
        if self.refusal is not None:
            raise self.refusal
        if submission_id in self.jobs:
            raise RuntimeError(f"Job with submission_id {submission_id} already exists.")
        assert submission_id is not None
        self.sent.append({"entrypoint": entrypoint, "id": submission_id, "runtime_env": runtime_env, "metadata": metadata})
        self.jobs[submission_id] = job_details(
            submission_id, "RUNNING", start=next(self.clock), metadata=metadata, runtime_env=runtime_env
        )
        return submission_id

    def get_job_status(self, job_id: str) -> JobStatus:
        return self.jobs[job_id].status

    def get_job_logs(self, job_id: str) -> str:
        return self.log

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        if self.drop_after is not None:
            yield self.log[: self.drop_after]
            self.drop_after = None
            raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")
        for line in self.log.splitlines(keepends=True):
            yield line
        self.end(job_id, next(self.ends))

    def stop_job(self, job_id: str) -> bool:
        running = not self.jobs[job_id].status.is_terminal()
        if running:
            self.end(job_id, "STOPPED")
        return running

    def end(self, job_id: str, status: str) -> None:
        self.jobs[job_id] = self.jobs[job_id].model_copy(update={"status": JobStatus(status), "end_time": next(self.clock)})


def job_details(job: str | None, status: str, *, start: int | None = None, **fields: Any) -> JobDetails:
    """Make a job's details as the job server sends them."""
    kind = JobType.SUBMISSION if job else JobType.DRIVER
    return JobDetails(
        type=kind, submission_id=job, status=JobStatus(status), start_time=start, **{"entrypoint": "ual run", **fields}
    )
