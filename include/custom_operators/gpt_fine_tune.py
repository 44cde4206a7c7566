"""The fine-tuning operator, at its well-known import path."""

from include.fine_tuning.operator import OpenAIFineTuneOperator

__all__ = ["OpenAIFineTuneOperator"]
