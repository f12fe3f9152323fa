"""Pure maths without Flax: every equation of the papers is a function here, which a test can call without a model."""
