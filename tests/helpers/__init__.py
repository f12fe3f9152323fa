"""What tests share: tiny models, tiny data, and running commands in processes of their own."""

from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
