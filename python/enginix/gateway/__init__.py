"""OpenAI's interface in front of Triton: LiteLLM, and the parts that it lacks for enginix's repositories."""
