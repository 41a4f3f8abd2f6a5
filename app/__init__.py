"""The chat demo: talk to the base model and the variants, compare them, or point other tools at them."""
