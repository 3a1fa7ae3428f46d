"""Speed of an OpenAI endpoint: a load, what it measured, and whether another is slower."""
