"""A look inside a finished training run: each part in a module of its own, its maths apart from its drawing."""
