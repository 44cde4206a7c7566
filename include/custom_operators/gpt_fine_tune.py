"""The operator, under the name by which it is known."""

from include.fine_tuning.operator import OpenAIFineTuneOperator

__all__ = ["OpenAIFineTuneOperator"]
