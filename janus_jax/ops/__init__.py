"""Pure maths without Flax: every equation of the papers lives here, testable without a model."""
