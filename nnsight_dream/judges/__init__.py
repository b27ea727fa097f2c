"""Who says what a picture shows, and how often they are right."""

from __future__ import annotations

from ..lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "named": ["DemoJudge", "Judge", "NamingJudge", "Verdict"],
        "local": ["DemoExaminer", "ZeroShotJudge"],
        "vlm": ["VLMJudge"],
        "openai": ["OpenAIJudge"],
        "desk": ["Asked", "Examiner", "Summary"],
        "tally": ["Agreement", "agreement", "grader_agreement", "results"],
    },
)
