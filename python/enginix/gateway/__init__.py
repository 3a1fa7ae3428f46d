"""OpenAI's interface in front of Triton: LiteLLM as the gateway, and what it lacks for our repositories."""
