"""What is minimised: one file per kind of model, with a pure function of parameters and batch."""
